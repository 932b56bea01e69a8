package activator

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// says has a pod's containers in these states.
func says(statuses ...corev1.ContainerStatus) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.ContainerStatuses = statuses }
}

func waiting(reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
}

func crashed() corev1.ContainerStatus {
	c := waiting("CrashLoopBackOff", "back-off 10s restarting failed container")
	c.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", Message: "password=hunter2"}
	return c
}

func TestSayingOf(t *testing.T) {
	long := strings.Repeat("x", 10*maxMessage)
	for _, tt := range []struct {
		name  string
		pod   func(*corev1.Pod)
		want  string
		stuck bool
	}{
		{"no image", says(waiting("ImagePullBackOff", `Back-off pulling image "x"`)), `container app: ImagePullBackOff: Back-off pulling image "x"`, true},
		{"crashes", says(crashed()), "container app: CrashLoopBackOff: back-off 10s restarting failed container (ended with exit code 137, OOMKilled)", true},
		{"crashed just now", says(corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 1, Reason: "Error", Message: "password=hunter2",
		}}}), "container app: ended with exit code 1, Error", true},
		{"no node", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes are available: 3 Insufficient cpu.",
			}}
		}, "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.", true},
		{"evicted", func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory."
		}, "Failed: Evicted", true},
		{"failed", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "Failed", true},
		{"starts", says(waiting("ContainerCreating", "")), "container app: ContainerCreating", false},
		{"never passes its probe", says(corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}), "container app: runs, and is not ready", false},
		{
			"what is stuck before what comes", says(waiting("ContainerCreating", ""), waiting("CreateContainerConfigError", `secret "x" not found`)),
			`container app: CreateContainerConfigError: secret "x" not found`, true,
		},
		{"init", func(p *corev1.Pod) {
			done := corev1.ContainerStatus{Name: "one", Ready: true, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed"}}}
			two := waiting("ErrImagePull", "not there")
			two.Name = "two"
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{done, two}
			says(waiting("PodInitializing", ""))(p)
		}, "container two: ErrImagePull: not there", true},
		{"long", says(waiting("ErrImagePull", long)), "container app: ErrImagePull: " + long[:maxMessage] + "...", true},
		{"lines", says(waiting("ErrImagePull", "a\n  b\tc ")), "container app: ErrImagePull: a b c", true},
		{
			"addresses", says(waiting("ErrImagePull", `Get "https://me:secret@registry.example/v2/x?X-Signature=secret&b": EOF`)),
			`container app: ErrImagePull: Get "https://registry.example/v2/x": EOF`, true,
		},
		{"ready", func(p *corev1.Pod) {
			says(crashed())(p)
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}, "", false},
		{"ends", func(p *corev1.Pod) {
			says(crashed())(p)
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}, "", false},
		{"says nothing", func(*corev1.Pod) {}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			tt.pod(pod)
			if got, stuck := sayingOf(pod); got != tt.want || stuck != tt.stuck {
				t.Errorf("got %q, %t, want %q, %t", got, stuck, tt.want, tt.stuck)
			}
		})
	}
}

// silentPods are a podReader that does not answer in time.
type silentPods struct{ *apiPods }

func (s silentPods) WatchPods(ctx context.Context, _ string, _ map[string]string) (watch.Interface, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// timedOut is what a request gets that is held in vain, after how long.
func timedOut(t *testing.T, p *plane, fn *function) (answer, time.Duration) {
	t.Helper()
	w, start := httptest.NewRecorder(), time.Now()
	p.proxy.serve(w, httptest.NewRequest(http.MethodGet, "/", nil), fn, &gate{fn: fn})
	return answer{w.Code, w.Header(), w.Body.String()}, time.Since(start)
}

// A request that was held in vain is told what the pods say, long after the scout of its wake has ended.
func TestHoldTimeoutSaysWhatThePodsSay(t *testing.T) {
	const before = "the Function default/hello had no ready pod within 30s (spec.activation.timeout); look at its pods: kubectl -n default describe deployment hello"
	noPull := says(waiting("ImagePullBackOff", `Back-off pulling image "x"`))
	for _, tt := range []struct {
		name   string
		change func(api *apiPods, p *plane)
		want   string
		late   time.Duration
	}{
		{
			"one pod", func(api *apiPods, _ *plane) { api.set(0, noPull) },
			`; pod hello-0: container app: ImagePullBackOff: Back-off pulling image "x"`, askQuiet,
		},
		{"several pods", func(api *apiPods, _ *plane) {
			api.set(0, says(waiting("ContainerCreating", "")))
			for i := 1; i <= maxSaying+1; i++ {
				api.set(i, noPull)
			}
		}, strings.Repeat(`; pod hello-#: container app: ImagePullBackOff: Back-off pulling image "x"`, maxSaying) + "; 2 more pods", askQuiet},
		{"no pod", func(*apiPods, *plane) {}, "", askFirst},
		{"silence", func(api *apiPods, p *plane) { p.proxy.podReader = silentPods{api} }, "", askTime},
		{"forbidden", func(api *apiPods, _ *plane) { api.refuse = apierrors.NewForbidden(corev1.Resource("pods"), "", nil) }, "", 0},
		{"no Service", func(api *apiPods, _ *plane) { api.service.Name = "other" }, "", 0},
		{"all pods in the namespace", func(api *apiPods, _ *plane) {
			api.set(0, noPull)
			api.service.Spec.Selector = nil
		}, "", 0},
		{"another name, for which a selector means nothing", func(api *apiPods, _ *plane) {
			api.set(0, noPull)
			api.service.Spec.Type = corev1.ServiceTypeExternalName
		}, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newAPIPods("10.0.0.1:80")
				p := newPlane(t, nil)
				p.proxy.podReader = api
				tt.change(api, p)
				fn := p.add(newTestFunction("hello", timeout(30*time.Second)))
				got, took := timedOut(t, p, fn)
				if want := 30*time.Second + tt.late; took != want {
					t.Errorf("answered after %s, want %s", took, want)
				}
				if got.status != http.StatusGatewayTimeout || got.header.Get(headerReason) != "HoldTimeout" || got.header.Get(headerColdStart) != "30000ms" {
					t.Errorf("got %d %v, want 504 HoldTimeout after 30000ms", got.status, got.header)
				}
				var body map[string]string
				if err := json.Unmarshal([]byte(got.body), &body); err != nil {
					t.Fatal(err)
				}
				want := before + tt.want
				for i := 1; strings.Contains(want, "#"); i++ {
					want = strings.Replace(want, "#", string(rune('0'+i)), 1)
				}
				if diff := cmp.Diff(map[string]string{"error": want, "reason": "HoldTimeout", "function": "default/hello"}, body); diff != "" {
					t.Errorf("body (-want +got):\n%s", diff)
				}
				p.proxy.wakers.Wait()
			})
		})
	}
}

// However many requests time out, a function's pods are asked once in a second, and nobody waits for longer than that takes.
func TestPodsAreAskedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newAPIPods("10.0.0.1:80")
		p := newPlane(t, nil)
		p.proxy.podReader = api
		obj := newTestFunction("hello", timeout(30*time.Second))
		obj.Spec.Activation.Probe = "Off" // no scout
		fn := p.add(obj)
		api.set(0, says(waiting("ErrImagePull", "not there")))
		var running sync.WaitGroup
		for range 100 {
			for range 10 {
				running.Go(func() {
					got, took := timedOut(t, p, fn)
					if took > 30*time.Second+askTime {
						t.Errorf("answered after %s", took)
					}
					if !strings.Contains(got.body, "ErrImagePull: not there") {
						t.Errorf("got %q", got.body)
					}
				})
			}
			pass(20 * time.Millisecond)
		}
		running.Wait()
		if got := api.watches.Load(); got != 2 {
			t.Errorf("asked %d times in 2 s, want 2", got)
		}
		api.set(0, says(waiting("ImagePullBackOff", "later")))
		pass(time.Second)
		if got, _ := timedOut(t, p, fn); !strings.Contains(got.body, "ImagePullBackOff: later") {
			t.Errorf("got %q, want what the pod says now", got.body)
		}
		p.proxy.wakers.Wait()
		synctest.Wait()
		if n := api.watching(); n != 0 {
			t.Errorf("%d watches are left", n)
		}
	})
}

// Pods are asked for nobody who is told something else.
func TestPodsAreNotAskedInVain(t *testing.T) {
	for name, change := range map[string]func(p *plane) *function{
		"the wake failed": func(p *plane) *function {
			p.proxy.waker = wakerFunc(func(types.NamespacedName, int32) (bool, error) { return false, errors.New("as of a test") })
			return p.add(newTestFunction("hello"))
		},
		"the fallback answers": func(p *plane) *function {
			fn := p.add(newTestFunction("hello", timeout(100*time.Millisecond), fallsBackTo("sorry", "")))
			p.pods("sorry", newPod(p.t, sorry))
			return fn
		},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIPods("10.0.0.1:80")
			p := newPlane(t, nil)
			p.proxy.podReader = api
			fn := change(p)
			obj := fn.object.Load().DeepCopy()
			timeout(100 * time.Millisecond)(obj)
			obj.Spec.Activation.Probe = "Off"
			fn.object.Store(obj)
			timedOut(t, p, fn)
			if got := api.watches.Load(); got != 0 {
				t.Errorf("asked %d times, want never", got)
			}
		})
	}
}
