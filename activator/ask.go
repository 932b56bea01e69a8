package activator

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// A request that was held in vain is answered with what keeps the pods from being ready, if they say so: an image that is
// not there, a crash, a lack of nodes. The scout of the wake has mostly ended by then, and what it saw is old.

// How pods are asked. The answer waits for it.
const (
	askTime  = 500 * time.Millisecond // at most, for an API server that has much to do
	askFirst = 100 * time.Millisecond // from when it has taken the watch until it tells of a pod, if there is one
	askQuiet = 20 * time.Millisecond  // after a pod was told of, until it was the last
	askAgain = time.Second            // until then what was said before does
)

// How much is passed on.
const (
	maxSaying  = 3   // pods
	maxMessage = 200 // bytes of one message
)

// saying is what the pods of a function have said the last time that they were asked.
type saying struct {
	mu     sync.Mutex // protects following
	text   string
	at     time.Time
	asking chan struct{} // closed when the pods were asked; nil while nobody asks
}

// podsSay is why fn's pods are not ready, for a human; empty where that is not known. It takes askTime at most.
func (p *proxy) podsSay(fn *function) string {
	s := &fn.saying
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.asking != nil {
		asking := s.asking
		s.mu.Unlock()
		<-asking
		s.mu.Lock()
	}
	if !s.at.IsZero() && time.Since(s.at) < askAgain {
		return s.text
	}
	s.asking = make(chan struct{})
	s.mu.Unlock()
	text := p.askPods(fn)
	s.mu.Lock()
	s.text, s.at = text, time.Now()
	close(s.asking)
	s.asking = nil
	return text
}

// askPods has a watch tell of the pods that there are. It is not for lists, which the ClusterRole does not have.
func (p *proxy) askPods(fn *function) string {
	if p.podReader == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	_, events, err := p.watchPods(ctx, pathsOf(fn.object.Load()))
	if err != nil {
		return ""
	}
	defer events.Stop()
	pods := map[types.UID]*corev1.Pod{}
	quiet := time.After(askFirst)
	for {
		select {
		case event, ok := <-events.ResultChan():
			if pod, isPod := event.Object.(*corev1.Pod); ok && isPod {
				if pods[pod.UID] = pod; event.Type == watch.Deleted {
					delete(pods, pod.UID)
				}
				quiet = time.After(askQuiet)
				continue
			}
		case <-quiet:
		case <-ctx.Done():
		}
		return sayings(slices.Collect(maps.Values(pods)))
	}
}

// sayings is what pods say, those first that will not become ready by themselves.
func sayings(pods []*corev1.Pod) string {
	type line struct {
		name, text string
		stuck      bool
	}
	var lines []line
	for _, pod := range pods {
		if text, stuck := sayingOf(pod); text != "" {
			lines = append(lines, line{pod.Name, text, stuck})
		}
	}
	slices.SortFunc(lines, func(a, b line) int {
		if a.stuck != b.stuck {
			return map[bool]int{true: -1, false: 1}[a.stuck]
		}
		return cmp.Compare(a.name, b.name)
	})
	var all []string
	for i, l := range lines {
		if i == maxSaying {
			all = append(all, fmt.Sprintf("%d more pods", len(lines)-i))
			break
		}
		all = append(all, "pod "+l.name+": "+l.text)
	}
	return strings.Join(all, "; ")
}

// sayingOf is why pod is not ready; empty if it is, or ends. stuck tells whether that will hardly pass by itself.
func sayingOf(pod *corev1.Pod) (text string, stuck bool) {
	switch {
	case pod.DeletionTimestamp != nil, pod.Status.Phase == corev1.PodSucceeded:
		return "", false
	case pod.Status.Phase == corev1.PodFailed:
		return strings.TrimSuffix("Failed: "+pod.Status.Reason, ": "), true
	}
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue:
			return "", false
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			return reasonAnd(c.Reason, c.Message), true
		}
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		own, isStuck := containerSays(&c)
		if own != "" && (text == "" || isStuck && !stuck) {
			text, stuck = "container "+c.Name+": "+own, isStuck
		}
	}
	return text, stuck
}

// containerSays is why a container is not ready. What it has said itself when it ended may be anything, and is left out.
func containerSays(c *corev1.ContainerStatus) (text string, stuck bool) {
	switch state := c.State; {
	case state.Waiting != nil:
		text = reasonAnd(state.Waiting.Reason, state.Waiting.Message)
		if last := c.LastTerminationState.Terminated; last != nil {
			text += " (" + ended(last) + ")"
		}
		return text, state.Waiting.Reason != "ContainerCreating" && state.Waiting.Reason != "PodInitializing"
	case state.Terminated != nil && !c.Ready: // one of init that has done its work is ready
		return ended(state.Terminated), true
	case state.Running != nil && !c.Ready:
		return "runs, and is not ready", false
	default:
		return "", false
	}
}

func ended(t *corev1.ContainerStateTerminated) string {
	return fmt.Sprintf("ended with exit code %d, %s", t.ExitCode, cmp.Or(t.Reason, "no reason"))
}

// secrets are what a message may have that is not for strangers: the parameters of an address, such as a signature by which a
// registry lets a layer be read, and a password in one.
var secrets = regexp.MustCompile(`(://)[^/\s"@]*@|\?[^\s"]*`)

// reasonAnd is a reason with its message, in one line, cut off where it is long.
func reasonAnd(reason, message string) string {
	message = secrets.ReplaceAllString(strings.Join(strings.Fields(message), " "), "$1")
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
	}
	return strings.TrimSuffix(reason+": "+message, ": ")
}
