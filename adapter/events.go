package adapter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	eventsclient "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

const (
	// mostWaiting bounds the notices that wait to be written, of all functions.
	mostWaiting = 1000
	// mostOfAFunction bounds the Events of one function in perFunction.
	mostOfAFunction = 10
	perFunction     = 10 * time.Minute
	// attempts to write an Event, attemptEvery apart, each of which takes attemptTimeout at most.
	attempts       = 3
	attemptEvery   = 2 * time.Second
	attemptTimeout = 5 * time.Second
	// mostNote bounds an Event's note, in bytes: the API server takes 1024.
	mostNote = 1000
)

// Events writes notices as Events of their Functions. What is noticed by several replicas has the same name there, so that
// the second to write it finds it written. What comes faster than it may be written is dropped and counted. Make it with
// NewEvents.
type Events struct {
	client   eventsclient.EventsGetter
	reader   Reader
	instance string
	waiting  chan waitingNotice
	outcomes *prometheus.CounterVec

	mu     sync.Mutex // protects following
	recent map[types.NamespacedName]*recentEvents
	swept  time.Time
}

// waitingNotice is one that is to be written.
type waitingNotice struct {
	function types.NamespacedName
	providers.Notice
}

// recentEvents of a function.
type recentEvents struct {
	since time.Time
	n     int
}

var _ providers.Notifier = (*Events)(nil)

// NewEvents writes to the API server of config. The reader knows the Functions. Instance is the name of the replica.
func NewEvents(config *rest.Config, reader Reader, instance string, registry prometheus.Registerer) (*Events, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 5, 10 // nothing waits for them
	client, err := eventsclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client for events: %w", err)
	}
	e := &Events{
		client: client, reader: reader, instance: instance, waiting: make(chan waitingNotice, mostWaiting),
		recent: map[types.NamespacedName]*recentEvents{},
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_adapter_events_total",
			Help: "Events of Functions, by outcome: written, known (another replica wrote it), dropped (too many at once), error.",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"written", "known", "dropped", "error"} { // so that it reads 0 before it first happens
		e.outcomes.WithLabelValues(outcome)
	}
	if err := registry.Register(e.outcomes); err != nil {
		return nil, fmt.Errorf("register the metrics of events: %w", err)
	}
	return e, nil
}

// Notify implements providers.Notifier. It does not wait.
func (e *Events) Notify(function types.NamespacedName, n providers.Notice) {
	if e.mayWrite(function, time.Now()) {
		select {
		case e.waiting <- waitingNotice{function, n}:
			return
		default:
		}
	}
	e.outcomes.WithLabelValues("dropped").Inc()
}

// mayWrite tells whether the function has not had its Events yet.
func (e *Events) mayWrite(function types.NamespacedName, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.swept) >= perFunction {
		e.swept = now
		for name, r := range e.recent {
			if now.Sub(r.since) >= perFunction {
				delete(e.recent, name)
			}
		}
	}
	r := e.recent[function]
	if r == nil || now.Sub(r.since) >= perFunction {
		r = &recentEvents{since: now}
		e.recent[function] = r
	}
	r.n++
	return r.n <= mostOfAFunction
}

// Run writes until ctx ends.
func (e *Events) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-e.waiting:
			e.write(ctx, n)
		}
	}
}

// write writes one Event, and tries again where that may help.
func (e *Events) write(ctx context.Context, n waitingNotice) {
	log := logr.FromContextOrDiscard(ctx).WithValues("namespace", n.function.Namespace, "function", n.function.Name, "reason", n.Reason)
	info, err := e.reader.Info(n.function)
	if err != nil {
		return // it is gone, and nobody looks at its Events
	}
	event := e.event(info, n)
	for attempt := 1; ; attempt++ {
		attempting, cancel := context.WithTimeout(ctx, attemptTimeout)
		_, err = e.client.Events(n.function.Namespace).Create(attempting, event, metav1.CreateOptions{})
		cancel()
		switch {
		case err == nil:
			e.outcomes.WithLabelValues("written").Inc()
			log.Info("noticed", "note", event.Note)
			return
		case apierrors.IsAlreadyExists(err):
			e.outcomes.WithLabelValues("known").Inc()
			return
		case attempt == attempts, apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsNotFound(err):
			e.outcomes.WithLabelValues("error").Inc()
			log.Error(err, "Event cannot be written", "note", event.Note)
			return
		}
		timer := time.NewTimer(attemptEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// event is the Event of a notice. Its name is that of the occurrence, for whoever notices it.
func (e *Events) event(info providers.Info, n waitingNotice) *eventsv1.Event {
	occurrence := sha256.Sum256([]byte(strings.Join([]string{string(info.UID), n.Reason, n.Key}, "\n")))
	name := info.Name.Name
	if most := 253 - 1 - 16; len(name) > most { // a name has 253 characters at most
		name = strings.TrimRight(name[:most], "-.")
	}
	note := strings.Join(strings.Fields(n.Text), " ")
	if len(note) > mostNote {
		note = strings.ToValidUTF8(note[:mostNote], "") + "..."
	}
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: info.Name.Namespace, Name: name + "." + hex.EncodeToString(occurrence[:8])},
		EventTime:  metav1.NewMicroTime(n.At),
		Regarding: corev1.ObjectReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "Function", Namespace: info.Name.Namespace, Name: info.Name.Name, UID: info.UID,
		},
		Type: corev1.EventTypeWarning, Reason: n.Reason, Action: "Measure", Note: note,
		ReportingController: Service, ReportingInstance: e.instance,
	}
}
