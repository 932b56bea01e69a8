package adapter

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
)

const (
	// discoverEvery is the time between two looks at what an upstream serves.
	discoverEvery = 30 * time.Second
	// maxDiscovery and maxResources bound what an upstream says that it serves, which is kept in several forms.
	maxDiscovery = 16 << 20
	maxResources = 50_000
)

// discovered is what an upstream serves, by version.
type discovered struct {
	versions map[string][]metav1.APIResource
}

// lacks says in words that the version of a path is none of those that are served; empty if it is, or nobody knows.
func (d *discovered) lacks(group, path string) string {
	if d == nil || len(d.versions) == 0 {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(path, "/apis/"+group+"/"), "/")
	if _, ok := d.versions[version]; ok {
		return ""
	}
	var has []string
	for v := range d.versions {
		has = append(has, v)
	}
	slices.Sort(has)
	return fmt.Sprintf("does not serve %s of %s, it serves %s", version, group, strings.Join(has, ", "))
}

// discover asks for all versions of the group. One that the upstream does not have is left out; anything else that
// goes wrong is an error.
func (u *upstream) discover(ctx context.Context, versions []schema.GroupVersion) (*discovered, error) {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	d := &discovered{versions: map[string][]metav1.APIResource{}}
	for _, version := range versions {
		resources, ok, err := u.discoverVersion(ctx, version)
		if err != nil {
			return nil, fmt.Errorf("discovery of %s at upstream %s: %w", version, u.service, err)
		}
		if ok {
			d.versions[version.Version] = resources
		}
	}
	if len(d.versions) == 0 {
		return nil, fmt.Errorf("upstream %s serves no version of %s", u.service, u.group)
	}
	return d, nil
}

func (u *upstream) discoverVersion(ctx context.Context, version schema.GroupVersion) ([]metav1.APIResource, bool, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+u.service.address()+"/apis/"+version.String(), nil)
	if err != nil {
		return nil, false, err
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set(viaHeader, Service)
	resp, err := u.transport.RoundTrip(r)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusNotFound {
		return nil, false, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDiscovery+1))
	switch {
	case err != nil:
		return nil, false, err
	case resp.StatusCode != http.StatusOK:
		return nil, false, fmt.Errorf("it answers %s", resp.Status)
	case len(body) > maxDiscovery:
		return nil, false, fmt.Errorf("it answers with more than %d MiB", maxDiscovery>>20)
	}
	var list struct {
		GroupVersion string           `json:"groupVersion"`
		Resources    boundedResources `json:"resources"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, false, fmt.Errorf("its answer is no list of resources: %w", err)
	}
	if list.GroupVersion != version.String() {
		return nil, false, fmt.Errorf("its answer is of %q", list.GroupVersion)
	}
	return list.Resources, true, nil
}

// boundedResources are decoded one by one, so that a flood of them ends before it has become larger than its text.
type boundedResources []metav1.APIResource

// UnmarshalJSON implements json.Unmarshaler.
func (b *boundedResources) UnmarshalJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	switch opens, err := decoder.Token(); {
	case err != nil:
		return err
	case opens != nil && opens != json.Delim('['): // null is none
		return fmt.Errorf("it is no array: %v", opens)
	}
	for decoder.More() {
		if len(*b) == maxResources {
			return fmt.Errorf("it has more than %d", maxResources)
		}
		var r metav1.APIResource
		if err := decoder.Decode(&r); err != nil {
			return err
		}
		*b = append(*b, r)
	}
	return nil
}

// upstreams are the other adapters, by API group.
type upstreams struct {
	facts   facts
	byGroup map[string]*upstream
	// own are Sluice's own resources, by API group.
	own map[string][]metav1.APIResource
	// aggregated is the form of discovery that the server keeps.
	aggregated aggregated.ResourceManager
	every      time.Duration
}

// newUpstreams is nil when there are none.
func newUpstreams(o Options, m *adapterMetrics, log logr.Logger) (*upstreams, error) {
	metrics := functionMetrics{o.Reader}
	all := &upstreams{
		facts: o.Reader, byGroup: map[string]*upstream{}, every: cmp.Or(o.discoverEvery, discoverEvery),
		own: map[string][]metav1.APIResource{
			custom_metrics.GroupName:   provider.NewCustomMetricResourceLister(metrics).ListAPIResources(),
			external_metrics.GroupName: provider.NewExternalMetricResourceLister(metrics).ListAPIResources(),
		},
	}
	for group, text := range map[string]string{
		custom_metrics.GroupName: o.Upstreams.CustomMetrics, external_metrics.GroupName: o.Upstreams.ExternalMetrics,
	} {
		if text == "" {
			continue
		}
		s, err := parseService(text)
		if err != nil {
			return nil, err
		}
		u, err := newUpstream(o, group, s, m.upstream, log)
		if err != nil {
			return nil, err
		}
		if err := o.Registry.Register(breakerGauge(u)); err != nil {
			return nil, fmt.Errorf("register metrics of upstream %s: %w", s, err)
		}
		all.byGroup[group] = u
	}
	if len(all.byGroup) == 0 {
		return nil, nil
	}
	return all, nil
}

// handler gives the upstreams what is theirs, and everything else to next. It belongs after authorization.
func (all *upstreams) handler(next http.Handler) http.Handler {
	if all == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		if !ok || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		if version, u := all.discoveryOf(r.URL.Path); u != nil {
			all.serveDiscovery(w, r, version, u)
			return
		}
		u := all.byGroup[info.APIGroup]
		if u == nil {
			next.ServeHTTP(w, r)
			return
		}
		if q, ok := ask(info, r.URL.Query()); !ok || q.ours(all.facts) {
			next.ServeHTTP(w, r)
			return
		}
		u.ServeHTTP(w, r)
	})
}

// discoveryOf tells of a group with an upstream which version of it path is the discovery of.
func (all *upstreams) discoveryOf(path string) (schema.GroupVersion, *upstream) {
	version, err := schema.ParseGroupVersion(strings.TrimSuffix(strings.TrimPrefix(path, "/apis/"), "/"))
	if err != nil || !strings.HasPrefix(path, "/apis/") || !slices.Contains(versionsOf(version.Group), version) {
		return version, nil
	}
	return version, all.byGroup[version.Group]
}

func versionsOf(group string) []schema.GroupVersion {
	return apiserver.Scheme.PrioritizedVersionsForGroup(group)
}

// serveDiscovery answers from memory with the resources of both.
func (all *upstreams) serveDiscovery(w http.ResponseWriter, r *http.Request, version schema.GroupVersion, u *upstream) {
	if via := r.Header.Get(viaHeader); via != "" {
		u.answer(w, r, http.StatusLoopDetected, "is a Sluice adapter itself")
		return
	}
	lister := discovery.APIResourceListerFunc(func() []metav1.APIResource { return all.merged(version, u.found.Load()) })
	discovery.NewAPIVersionHandler(apiserver.Codecs, version, lister).ServeHTTP(w, r)
}

// merged are our own resources and those of an upstream that are not among them. A metric that says of its object that it
// is namespaced, where another said that it is not, is left out: for one such the aggregated form of discovery refuses
// all. So is one without a name.
func (all *upstreams) merged(version schema.GroupVersion, found *discovered) []metav1.APIResource {
	merged := slices.Clone(all.own[version.Group])
	if found == nil {
		return merged
	}
	known, namespaced := map[string]bool{}, map[string]bool{}
	for _, r := range merged {
		object, _, _ := strings.Cut(r.Name, "/")
		known[r.Name], namespaced[object] = true, r.Namespaced
	}
	for _, r := range found.versions[version.Version] {
		object, metric, ofObject := strings.Cut(r.Name, "/")
		if scope, ok := namespaced[object]; known[r.Name] || object == "" || ofObject && metric == "" || ok && scope != r.Namespaced {
			continue
		}
		known[r.Name], namespaced[object] = true, r.Namespaced
		merged = append(merged, r)
	}
	return merged
}

// install lets s's discovery show what is found. It belongs after all of Sluice's own.
func (all *upstreams) install(s *genericapiserver.GenericAPIServer) {
	if all != nil {
		all.aggregated = s.AggregatedDiscoveryGroupManager
	}
}

// run keeps what the upstreams serve until ctx ends. What was found stays while an upstream is down.
func (all *upstreams) run(ctx context.Context) {
	if all == nil {
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	for _, u := range all.byGroup {
		running.Go(func() { all.follow(ctx, u) })
	}
}

func (all *upstreams) follow(ctx context.Context, u *upstream) {
	defer utilnet.CloseIdleConnectionsFor(u.transport)
	ticker := time.NewTicker(all.every)
	defer ticker.Stop()
	healthy, first := true, true
	for {
		found, err := u.discover(ctx, versionsOf(u.group))
		if err == nil {
			err = all.publish(u, found)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			u.metrics.discoveryErrors.WithLabelValues(u.group).Inc()
			if healthy {
				u.log.Info("upstream cannot be discovered; what was found of it before stays", "err", err.Error())
			}
		case !healthy || first:
			u.log.Info("upstream discovered", "versions", len(found.versions))
		}
		healthy, first = err == nil, first && err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// publish makes found what discovery shows.
func (all *upstreams) publish(u *upstream, found *discovered) error {
	u.found.Store(found)
	var errs []error
	for _, version := range versionsOf(u.group) {
		resources, err := endpoints.ConvertGroupVersionIntoToDiscovery(all.merged(version, found))
		if err != nil {
			errs = append(errs, fmt.Errorf("aggregated discovery of %s: %w", version, err))
			continue
		}
		all.aggregated.AddGroupVersion(version.Group, apidiscoveryv2.APIVersionDiscovery{
			Version: version.Version, Resources: resources, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
		})
	}
	return errors.Join(errs...)
}
