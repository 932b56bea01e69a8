package v1alpha1

// Probe says whether pods of the function are probed ahead of Kubernetes's calling them ready.
//
// +kubebuilder:validation:Enum=Auto;Off
type Probe string

const (
	// ProbeAuto lets the gate run the readiness probes of a pod's containers itself while requests are held, and send
	// them as soon as the pod passes. Pods whose probes cannot be run from the gate are waited for.
	ProbeAuto Probe = "Auto"
	// ProbeOff waits until Kubernetes calls a pod ready.
	ProbeOff Probe = "Off"
)

// ProbesAhead tells whether the gate probes the function's pods while requests are held.
func (f *Function) ProbesAhead() bool { return f.Spec.Activation.Probe != ProbeOff }
