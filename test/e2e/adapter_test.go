//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Both adapters are replaced one after the other while values are read all the time through the API server: no read
// fails, and none says anything but what is true.
func adapterRolls(s *story) {
	s.workload("hello", 1)
	fn := proxied("hello")
	fn.Spec.Scale.MinReplicas = 1
	s.create(fn)
	s.awaitPhase("hello", v1alpha1.Active, 30*time.Second)
	stopLoad := s.steadyLoad(s.clusterIP("sluice-hello"), 20, true)
	defer stopLoad()
	eventually(s.T, 60*time.Second, "a window to be full", func(ctx context.Context) string {
		if got, err := s.metric(ctx, "hello", v1alpha1.RequestsPerSecond); err != nil || got < 19 {
			return fmt.Sprintf("%v (%v)", got, err)
		}
		return ""
	})

	ctx, stop := context.WithCancel(s.Context())
	var readers sync.WaitGroup
	var reads, short atomic.Int64
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				got, err := s.metric(ctx, "hello", v1alpha1.RequestsPerSecond)
				switch {
				case ctx.Err() != nil:
				case err != nil:
					s.Errorf("a read failed: %v", err)
				case got < 15 || got > 25:
					// A new adapter has not seen a whole window yet; what it has seen is a rate as well.
					short.Add(1)
					s.Logf("requests_per_second %v under a load of 20", got)
				}
				reads.Add(1)
			}
		})
	}
	s.restart("sluice-adapter")
	s.awaitRollout(s.T, "sluice-adapter", 2)
	stop()
	readers.Wait()
	s.Logf("%d reads while both adapters were replaced", reads.Load())
	if reads.Load() < 1000 {
		s.Errorf("only %d reads", reads.Load())
	}
	if short.Load() > 0 {
		s.Errorf("%d reads were off by a quarter or more", short.Load())
	}
}

// restart replaces the pods of one of Sluice's own Deployments, as `kubectl rollout restart` does.
func (s *story) restart(name string) {
	s.Helper()
	s.changeSystem(name, func(d *appsv1.Deployment) {
		if d.Spec.Template.Annotations == nil {
			d.Spec.Template.Annotations = map[string]string{}
		}
		d.Spec.Template.Annotations["story"] = s.namespace
	})
}

// changeSystem edits one of Sluice's own Deployments, and waits until its controller has taken note.
func (s *story) changeSystem(name string, edit func(*appsv1.Deployment)) {
	s.Helper()
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}
	var d appsv1.Deployment
	if err := s.client.Get(context.Background(), key, &d); err != nil {
		s.Fatal(err)
	}
	patch := client.MergeFrom(d.DeepCopy())
	edit(&d)
	if err := s.client.Patch(context.Background(), &d, patch); err != nil {
		s.Fatal(err)
	}
	eventually(s.T, 180*time.Second, name+" to be rolled out", func(ctx context.Context) string {
		var now appsv1.Deployment
		if err := s.client.Get(ctx, key, &now); err != nil {
			return err.Error()
		}
		if now.Status.ObservedGeneration < d.Generation || now.Status.UpdatedReplicas != *now.Spec.Replicas ||
			now.Status.Replicas != *now.Spec.Replicas || now.Status.AvailableReplicas != *now.Spec.Replicas {
			return fmt.Sprintf("%+v", now.Status)
		}
		return ""
	})
}
