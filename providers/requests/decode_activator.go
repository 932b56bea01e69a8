package requests

import (
	"fmt"
	"io"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// activatorNames are what is read of an activator; the constants below are their places.
var activatorNames = []string{
	v1alpha1.ActivatorStarted, v1alpha1.ActivatorInFlight,
	v1alpha1.ActivatorBusySeconds, v1alpha1.ActivatorHeldSeconds, startTime,
}

const (
	started = iota
	inFlight
	busySeconds
	heldSeconds
	activatorStart
)

// activatorFigures are those of all functions at one activator.
type activatorFigures struct {
	began     began
	functions []activatorFunction
	byName    map[types.NamespacedName]int
	next      int // where the function of the next sample probably is: all families have the same order
}

type activatorFunction struct {
	name    types.NamespacedName
	reading providers.Reading
	has     [activatorStart]bool
}

// Figures of 10,000 functions are a megabyte, every second.
var activatorPool = sync.Pool{New: func() any {
	return &activatorFigures{byName: map[types.NamespacedName]int{}}
}}

func (a *activatorFigures) reset() {
	a.began, a.functions, a.next = began{}, a.functions[:0], 0
	clear(a.byName)
}

func (a *activatorFigures) names() []string { return activatorNames }

func (a *activatorFigures) mention(int) {}

func (a *activatorFigures) take(i int, labels []label, v float64) error {
	if i == activatorStart {
		return a.began.take(v)
	}
	fn, err := a.function(activatorNames[i], labels)
	if err != nil {
		return err
	}
	if fn.has[i] {
		return fmt.Errorf("%w: %s is there twice for function %s", providers.ErrInvalid, activatorNames[i], fn.name)
	}
	fn.has[i] = true
	v += 0 // -0 is 0
	if err := checkValue(activatorNames[i], v); err != nil {
		return fmt.Errorf("function %s: %w", fn.name, err)
	}
	switch i {
	case started:
		fn.reading.Started = v
	case inFlight:
		fn.reading.InFlight = v
	case busySeconds:
		fn.reading.BusySeconds = v
	case heldSeconds:
		fn.reading.HeldSeconds = v
	}
	return nil
}

// function finds the function that the labels name, or adds it.
func (a *activatorFigures) function(family string, labels []label) (*activatorFunction, error) {
	var namespace, name []byte
	for _, l := range labels {
		switch string(l.name) {
		case v1alpha1.LabelNamespace:
			namespace = l.value
		case v1alpha1.LabelFunction:
			name = l.value
		}
	}
	if len(namespace) == 0 || len(name) == 0 {
		return nil, fmt.Errorf("%w: %s without labels %s and %s", providers.ErrInvalid, family,
			v1alpha1.LabelNamespace, v1alpha1.LabelFunction)
	}
	if a.next >= len(a.functions) {
		a.next = 0
	}
	if a.next < len(a.functions) {
		fn := &a.functions[a.next]
		if fn.name.Name == string(name) && fn.name.Namespace == string(namespace) {
			a.next++
			return fn, nil
		}
	}
	i, ok := a.byName[types.NamespacedName{Namespace: string(namespace), Name: string(name)}]
	if !ok {
		i = len(a.functions)
		key := types.NamespacedName{Name: string(name)}
		if i > 0 && a.functions[i-1].name.Namespace == string(namespace) {
			key.Namespace = a.functions[i-1].name.Namespace // one string for all of its functions
		} else {
			key.Namespace = string(namespace)
		}
		a.byName[key] = i
		a.functions = append(a.functions, activatorFunction{name: key})
	}
	a.next = i + 1
	return &a.functions[i], nil
}

// decodeActivator reads an activator's exposition. It must say something, for an activator always does; a function
// that is not in it reads zero.
func decodeActivator(body io.Reader, f format) (*providers.Measurement, error) {
	a := activatorPool.Get().(*activatorFigures)
	defer activatorPool.Put(a)
	a.reset()
	if err := decode(body, f, a); err != nil {
		return nil, err
	}
	start := a.began.time()
	if start.IsZero() {
		return nil, fmt.Errorf("%w: no %s, so this is not an activator", providers.ErrInvalid, startTime)
	}
	m := &providers.Measurement{Start: start, Functions: make(map[types.NamespacedName]providers.Reading, len(a.functions))}
	for _, fn := range a.functions {
		m.Functions[fn.name] = fn.reading
	}
	return m, nil
}
