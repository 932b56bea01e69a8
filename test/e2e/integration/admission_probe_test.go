//go:build integration

package integration

import (
	"github.com/sluice-dev/sluice/api/v1alpha1"
)

func probing(p v1alpha1.Probe) func(*v1alpha1.Function) {
	return func(fn *v1alpha1.Function) { fn.Spec.Activation.Probe = p }
}

var acceptedProbes = map[string]func(*v1alpha1.Function){
	"probe Auto": probing(v1alpha1.ProbeAuto),
	"probe Off":  probing(v1alpha1.ProbeOff),
}

var refusedProbes = []refusal{
	{"a probe that there is not", probing("Ready"), []string{"spec.activation.probe", `"Auto", "Off"`}},
	{
		"pods probed for requests without traffic", func(fn *v1alpha1.Function) {
			withoutTraffic(fn)
			fn.Spec.Activation.Probe = v1alpha1.ProbeOff
		},
		[]string{"spec.activation", "spec.traffic"},
	},
}
