// Package v1alpha1 is the vocabulary of Sluice: the Function kind, the names of the metrics that are served and
// scraped, the labels and ports that the processes agree on, and how the pods of a function are told from its gate.
// Every other package speaks it; it imports none of them.
//
// +kubebuilder:object:generate=true
// +groupName=sluice.dev
package v1alpha1
