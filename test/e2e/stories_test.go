//go:build e2e

package e2e

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
)

var root = flag.String("root", "", "root of the repository")

// TestStories runs every story: first, side by side, those that leave Sluice alone; then, one by one, those that stop
// a part of it; last the one that removes it.
func TestStories(t *testing.T) {
	w := newWorld(t)
	t.Run("functions", func(t *testing.T) {
		w.story(t, "BadSpecs", badSpecs)
		w.story(t, "Conflicts", conflicts)
		w.story(t, "WorkloadStays", workloadStays)
		w.story(t, "StaticAnswersKeepNobodyAwake", staticAnswers)
		w.story(t, "PlaceholderWakes", placeholderWakes)
		w.story(t, "FallbackAnswers", fallbackAnswers)
		w.story(t, "ScalesOnRateDirect", scalesOnRateDirect)
		w.story(t, "ScalesOnRateProxied", scalesOnRateProxied)
		w.story(t, "LiveChanges", liveChanges)
		w.story(t, "OwnHPAs", ownHPAs)
		w.story(t, "OwnHPAToZero", ownHPAToZero)
		w.story(t, "OwnHPATold", ownHPATold)
		w.story(t, "ScalesOnQueue", scalesOnQueue)
		w.story(t, "ScalesOnQuery", scalesOnQuery)
	})
	// Of lag, which is compared with Kafka's own tool, whose JVM wants a processor each time.
	t.Run("lag", func(t *testing.T) {
		w.story(t, "KafkaDrains", kafkaDrains)
		w.story(t, "KafkaOutage", kafkaOutage)
		w.story(t, "KafkaAndRate", kafkaAndRate)
	})
	// Alone on the machine, because they are about moments.
	t.Run("cold", func(t *testing.T) {
		w.story(t, "ColdStartDirect", coldStartDirect)
		w.story(t, "ColdStartProxied", coldStartProxied)
		w.story(t, "ColdStartStatefulSet", coldStartStatefulSet)
		w.story(t, "FiftyAtOnceWakeOnce", fiftyAtOnceWakeOnce)
	})
	t.Run("gate", func(t *testing.T) {
		for _, way := range steadyWays() {
			w.story(t, "Steady"+way.name(), func(s *story) { steady(s, way) })
		}
		for _, way := range otherWays() {
			w.story(t, "Through"+way.name(), func(s *story) { through(s, way) })
		}
		w.story(t, "UnchangedByClusterIP", func(s *story) { unchanged(s, false) })
		w.story(t, "UnchangedByDoor", func(s *story) { unchanged(s, true) })
		w.story(t, "DirectLeavesTheGate", directLeavesTheGate)
		w.story(t, "PodsThatNeverServe", podsThatNeverServe)
		w.story(t, "PodsThatTurnBad", podsThatTurnBad)
		w.story(t, "PodsThatTurnBadDirect", podsThatTurnBadDirect)
	})
	t.Run("sleep", func(t *testing.T) {
		w.story(t, "AnyMomentDirect", anyMomentDirect)
		w.story(t, "AnyMomentProxied", anyMomentProxied)
	})
	t.Run("failures", func(t *testing.T) {
		w.serial(t, "AdapterRollsLosingNoRead", adapterRolls)
		w.serial(t, "BesidePrometheusAdapter", besidePrometheusAdapter)
		w.serial(t, "WithoutAdapterNothingScalesDown", withoutAdapter)
		w.serial(t, "WithoutScalerItStillWakes", withoutScaler)
		w.serial(t, "LimitHolds", limitHolds)
		w.serial(t, "ActivatorsRollLosingNothing", activatorsRoll)
		w.serial(t, "ActivatorKilled", activatorKilled)
		w.serial(t, "ZeroToThousands", zeroToThousands)
		w.serial(t, "WithoutAPIServer", withoutAPIServer)
	})
	w.serial(t, "Uninstall", uninstall)
}

// world is the cluster and the ways to ask it.
type world struct {
	cluster *cluster.Cluster
	config  *rest.Config
	client  client.Client
	kube    kubernetes.Interface
	root    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if *root == "" {
		t.Fatal("run the stories with `make e2e`: the flag -root is missing")
	}
	c, err := cluster.Start(t.Context(), cluster.Options{Root: *root, Dir: filepath.Join(*root, ".cluster"), Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		t.Fatal(err)
	}
	cl, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{cluster: c, config: config, client: cl, kube: kube, root: *root}
	// The pods of an installation before this one may still be draining.
	for _, name := range []string{"sluice-activator", "sluice-adapter", "sluice-scaler"} {
		w.awaitRollout(t, name, 2)
	}
	return w
}

// story runs f in a namespace of its own, side by side with the other stories of its group.
func (w *world) story(t *testing.T, name string, f func(*story)) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		f(w.begin(t))
	})
}

// serial runs f in a namespace of its own while nothing else runs.
func (w *world) serial(t *testing.T, name string, f func(*story)) {
	t.Run(name, func(t *testing.T) { f(w.begin(t)) })
}

// eventually polls until done returns "", and fails with what done last said when that takes longer than limit.
func eventually(t *testing.T, limit time.Duration, what string, done func(context.Context) string) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	last := "nothing yet"
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		said := done(ctx)
		if said == "" {
			return
		}
		if ctx.Err() == nil {
			last = said
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %s", what, time.Since(began).Round(time.Second), last)
		}
	}
}

// always asserts for a time that check keeps returning "".
func always(t *testing.T, span time.Duration, what string, check func(context.Context) string) {
	t.Helper()
	end := time.Now().Add(span)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) {
		if said := check(t.Context()); said != "" {
			t.Fatalf("%s: %s", what, said)
		}
		<-tick.C
	}
}
