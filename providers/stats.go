package providers

// Stats counts what the Store holds.
type Stats struct {
	// Functions known; Activators, Pods and Queries that are listed; Series remembered.
	Functions, Activators, Pods, Queries, Series int
}

// Stats counts what the Store holds now.
func (s *Store) Stats() Stats {
	functions := s.functionsOf(s.namespace(""))
	st := Stats{Functions: len(functions), Activators: len(s.activators.Load().live)}
	for _, f := range functions {
		st.Queries += len(*f.queries.Load())
		f.mu.RLock()
		st.Pods += len(f.pods.live)
		st.Series += len(f.tracks)
		for _, g := range [...][]*source{f.pods.live, f.pods.gone} {
			for _, src := range g {
				if src.track != nil {
					st.Series++
				}
			}
		}
		f.mu.RUnlock()
	}
	return st
}
