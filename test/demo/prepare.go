package main

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// metricsAPI waits for the APIService to be available.
func (d *Demo) metricsAPI(ctx context.Context) error {
	name := custommetrics.SchemeGroupVersion.Version + "." + custommetrics.GroupName
	return until(ctx, d.opts.Poll, d.out.line, func(ctx context.Context) (string, bool, error) {
		var s apiregistrationv1.APIService
		if err := d.cluster.get(ctx, types.NamespacedName{Name: name}, &s); err != nil {
			return oneLine(err), false, nil
		}
		for _, c := range s.Status.Conditions {
			if c.Type == apiregistrationv1.Available {
				seen := fmt.Sprintf("APIService %s: Available=%s (%s: %s)", name, c.Status, c.Reason, c.Message)
				return seen, c.Status == apiregistrationv1.ConditionTrue, nil
			}
		}
		return fmt.Sprintf("APIService %s: nothing is known yet of whether it is available", name), false, nil
	})
}

// ready returns a stage that waits for a Deployment of Sluice.
func (d *Demo) ready(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		return until(ctx, d.opts.Poll, d.out.line, func(ctx context.Context) (string, bool, error) {
			deployment, err := d.cluster.deployment(ctx, types.NamespacedName{Namespace: d.opts.System, Name: name})
			if err != nil {
				return oneLine(err), false, nil
			}
			seen, ok := deploymentReady(deployment)
			return seen, ok, nil
		})
	}
}

func deploymentReady(deployment *appsv1.Deployment) (seen string, ok bool) {
	want, st := replicas(deployment), deployment.Status
	seen = fmt.Sprintf("Deployment %s/%s: %d of %d pods are up to date, %d ready",
		deployment.Namespace, deployment.Name, st.UpdatedReplicas, want, st.ReadyReplicas)
	current := st.ObservedGeneration >= deployment.Generation
	return seen, current && want > 0 && st.UpdatedReplicas >= want && st.ReadyReplicas >= want
}

// functionReady waits for the condition Ready, and keeps the Function for the stages to come.
func (d *Demo) functionReady(ctx context.Context) error {
	return until(ctx, d.opts.Poll, d.out.line, func(ctx context.Context) (string, bool, error) {
		fn, err := d.cluster.function(ctx, d.opts.Function)
		if err != nil {
			return oneLine(err), false, nil
		}
		if err := presentable(fn); err != nil {
			return "", false, err
		}
		c := meta.FindStatusCondition(fn.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil || c.ObservedGeneration != fn.Generation {
			return fmt.Sprintf("Function %s: the scaler has not looked at it yet", fn.Key()), false, nil
		}
		d.fn = fn
		seen := fmt.Sprintf("Function %s: Ready=%s (%s: %s)", fn.Key(), c.Status, c.Reason, c.Message)
		return seen, c.Status == "True", nil
	})
}

// presentable refuses a function that the stages cannot be observed on, with the remedy.
func presentable(fn *v1alpha1.Function) error {
	switch {
	case !fn.IsProxied():
		return fmt.Errorf("function %s is not of mode Proxied, and has no Service %s to load; set spec.traffic.mode",
			fn.Key(), fn.OwnedName())
	case !fn.MaySleep():
		return fmt.Errorf("function %s may not sleep; set spec.scale.minReplicas to 0", fn.Key())
	case rateTarget(fn) <= 0:
		return fmt.Errorf("function %s does not scale on its rate; add a requestRate to spec.metrics", fn.Key())
	}
	return nil
}

// rateTarget is the rate that one replica is to serve, 0 where the function does not scale on its rate.
func rateTarget(fn *v1alpha1.Function) float64 {
	for _, m := range fn.Spec.Metrics {
		if m.RequestRate != nil {
			return m.RequestRate.Target.AsApproximateFloat64()
		}
	}
	return 0
}

// asleep waits for zero replicas and phase Idle. The gate is in the path then: the scaler proves that first.
func (d *Demo) asleep(ctx context.Context) error {
	return until(ctx, d.opts.Poll, d.out.line, func(ctx context.Context) (string, bool, error) {
		s, err := d.state(ctx)
		if err != nil {
			return oneLine(err), false, nil
		}
		return s.String(), s.asleep(), nil
	})
}

// state is where the function is between sleeping and serving.
type state struct {
	phase    v1alpha1.Phase
	replicas int32 // that the workload asks for
	inPath   bool
	decision string // the last one, with its reason; "" before the first
}

func (d *Demo) state(ctx context.Context) (state, error) {
	// The Deployment is read last: a state that reads as asleep cannot have a wake-up between its two halves that
	// the second does not show.
	fn, err := d.cluster.function(ctx, d.opts.Function)
	if err != nil {
		return state{}, err
	}
	deployment, err := d.cluster.deployment(ctx, types.NamespacedName{Namespace: fn.Namespace, Name: fn.WorkloadName()})
	if err != nil {
		return state{}, err
	}
	s := state{phase: fn.Status.Phase, replicas: replicas(deployment)}
	if fn.Status.Gate != nil {
		s.inPath = fn.Status.Gate.InPath
	}
	if last := fn.Status.LastDecision; last != nil {
		s.decision = last.Reason + ": " + last.Message
	}
	return s, nil
}

func (s state) asleep() bool { return s.phase == v1alpha1.Idle && s.replicas == 0 }

func (s state) String() string {
	path := "out of the path"
	if s.inPath {
		path = "in the path"
	}
	phase := s.phase
	if phase == "" {
		phase = "unknown"
	}
	text := fmt.Sprintf("phase %s, replicas %d, gate %s", phase, s.replicas, path)
	if s.decision != "" {
		text += "; last decision " + s.decision
	}
	return text
}
