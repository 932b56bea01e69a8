package adapter

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	custommetrics "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// mostPartitions bounds one answer: past it those with the largest lag are told of.
const mostPartitions = 2000

// partitionsPath ends the path of a metric that is asked for in parts.
const partitionsPath = "partitions"

// lagInParts is the answer for a metric of a consumer group.
type lagInParts struct {
	Function         string `json:"function"`
	Metric           string `json:"metric"`
	BootstrapServers string `json:"bootstrapServers"`
	Group            string `json:"group"`
	OffsetReset      string `json:"offsetReset"`
	Isolation        string `json:"isolation"`
	// Lag in records; null while it is not known.
	Lag *int64 `json:"lag"`
	// Error is why it is not known, or why the latest attempt to measure it failed.
	Error string `json:"error,omitempty"`
	// ObservedAt is when Partitions were, AgeSeconds how long ago that is; null for never.
	ObservedAt *metav1.Time `json:"observedAt"`
	AgeSeconds *float64     `json:"ageSeconds"`
	// Omitted is how many partitions are left out, each with no more lag than any of those that are here.
	Omitted    int               `json:"omitted,omitempty"`
	Partitions []lagOfAPartition `json:"partitions"`
}

type lagOfAPartition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed *int64 `json:"committed"` // null where nothing is
	Start     int64  `json:"start"`
	End       int64  `json:"end"`
	Lag       int64  `json:"lag"`
	// Note says why Lag is not what is between Committed and End.
	Note string `json:"note,omitempty"`
}

// servePartitions answers .../functions.sluice.dev/NAME/METRIC/partitions with what the lag of a consumer group is made of,
// and leaves all else to next. For whoever authorizes it is a read of METRIC, and nothing more is told than belongs to
// that; so it needs no rights of its own, and comes through the API server as METRIC does. It is in no discovery.
func servePartitions(reader Reader, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/"+partitionsPath) {
			next.ServeHTTP(w, r)
			return
		}
		info, ok := request.RequestInfoFrom(r.Context())
		if !ok || !info.IsResourceRequest || info.APIGroup != custommetrics.GroupName || info.Resource != v1alpha1.FunctionResource.String() ||
			info.Namespace == "" || len(info.Parts) != 4 || info.Parts[3] != partitionsPath {
			next.ServeHTTP(w, r)
			return
		}
		answer, err := lagOf(reader, types.NamespacedName{Namespace: info.Namespace, Name: info.Name}, info.Subresource)
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			err = apierrors.NewMethodNotSupported(custommetrics.Resource(v1alpha1.FunctionResource.String()), info.Verb)
		}
		if err != nil {
			responsewriters.ErrorNegotiated(err, apiserver.Codecs, custommetrics.SchemeGroupVersion, w, r)
			return
		}
		responsewriters.WriteRawJSON(http.StatusOK, answer, w)
	})
}

// lagOf is the lag of a function's metric in parts.
func lagOf(reader Reader, function types.NamespacedName, metric string) (*lagInParts, error) {
	lag, err := reader.ConsumerLag(function, metric)
	if errors.Is(err, providers.ErrNoFunction) {
		return nil, notFound("there is no Function %s", function)
	}
	if err != nil {
		has := ""
		if info, err := reader.Info(function); err == nil {
			has = strings.Join(info.Metrics, ", ")
		}
		return nil, notFound("%s of %s has no partitions: only the lag of a consumer group (spec.metrics[].kafkaLag) has; of all metrics there are %s",
			metric, function, cmp.Or(has, "none"))
	}
	c := &lag.Consumer
	a := &lagInParts{
		Function: function.String(), Metric: metric, BootstrapServers: c.Servers, Group: c.Group,
		OffsetReset: string(c.Reset), Isolation: string(c.Isolation), Partitions: make([]lagOfAPartition, 0, min(len(lag.Partitions), mostPartitions)),
	}
	if !lag.At.IsZero() {
		at, age := metav1.NewTime(lag.At), max(0, time.Since(lag.At)).Round(time.Millisecond).Seconds()
		a.ObservedAt, a.AgeSeconds = &at, &age
	}
	sum := int64(0)
	for i := range lag.Partitions {
		sum += lag.Partitions[i].Lag
	}
	switch {
	case lag.Unknown != nil:
		a.Error = oneLine(lag.Unknown.Error())
	case lag.Err != nil:
		a.Lag, a.Error = &sum, "the latest attempt to measure it failed: "+oneLine(lag.Err.Error())
	default:
		a.Lag = &sum
	}
	parts := lag.Partitions
	if a.Omitted = max(0, len(parts)-mostPartitions); a.Omitted > 0 {
		parts = slices.Clone(parts)
		slices.SortStableFunc(parts, func(a, b providers.PartitionLag) int { return cmp.Compare(b.Lag, a.Lag) })
		parts = parts[:mostPartitions]
	}
	for i := range parts {
		a.Partitions = append(a.Partitions, ofPartition(&parts[i], c.Reset))
	}
	return a, nil
}

func ofPartition(p *providers.PartitionLag, reset v1alpha1.KafkaOffsetReset) lagOfAPartition {
	a := lagOfAPartition{Topic: p.Topic, Partition: p.Partition, Committed: &p.Committed, Start: p.Start, End: p.End, Lag: p.Lag}
	from := "what has come since that was first seen counts"
	if reset == v1alpha1.KafkaEarliest {
		from = "all that is there counts"
	}
	switch {
	case p.Committed < 0:
		a.Committed, a.Note = nil, "nothing is committed: "+from
	case p.Committed > p.End:
		a.Note = "committed beyond the end, as if nothing were: " + from
	case p.Lag != p.End-max(p.Committed, p.Start):
		a.Note = "committed in a topic that was deleted since: " + from
	case p.Committed < p.Start:
		a.Note = "what was not read before the start is deleted, and does not count"
	}
	return a
}
