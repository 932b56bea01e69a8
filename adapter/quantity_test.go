package adapter

import (
	"math"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/providers"
)

func TestQuantity(t *testing.T) {
	tests := []struct {
		value float64
		want  string
	}{
		{0, "0"},
		{0.0004, "0"},
		{0.0005, "1m"},
		{0.9996, "1"},
		{12.3456, "12346m"},
		{3e7, "30M"},
		{1e15, "1P"},
		{9.1e15, "9100T"},
		{math.MaxFloat64, "9223372036854775807m"},
		{9223372036854775.807, "9223372036854775807m"},
	}
	for _, tt := range tests {
		if q := quantity(tt.value, math.MaxInt64); q.String() != tt.want {
			t.Errorf("quantity(%v) = %s, want %s", tt.value, q.String(), tt.want)
		}
	}
}

// FuzzQuantity: a value loses less than a thousandth and a bit of a float64, keeps its order, and does not wrap around
// where the HorizontalPodAutoscaler reads it or sums it.
func FuzzQuantity(f *testing.F) {
	for _, v := range []float64{0, 0.0005, 1, 12.3456, 1e15, 9.3e15, math.MaxFloat64} {
		f.Add(v, uint16(1))
	}
	f.Fuzz(func(t *testing.T, v float64, items uint16) {
		v, err := checkedNumber(v)
		if err != nil || items == 0 {
			t.Skip()
		}
		most := math.MaxInt64 / int64(items)
		milli := quantity(v, most)
		got := milli.MilliValue()
		if got < 0 || got > most {
			t.Fatalf("quantity(%v) is %d thousandths, want 0 to %d", v, got, most)
		}
		if off := math.Abs(float64(got) - v*1000); v*1000 < float64(most) && off > 0.5+v*1000*1e-15 {
			t.Errorf("quantity(%v) is %d thousandths, %v off", v, got, off)
		}
		if next := quantity(v*1.5, most); next.Cmp(milli) < 0 {
			t.Errorf("quantity(%v) = %s, less than %s of %v", v*1.5, next.String(), milli.String(), v)
		}
	})
}

func checkedNumber(v float64) (float64, error) {
	checked, err := checked(providers.Value{Value: v, At: at}, nil)
	return checked.Value, err
}

func TestWindowSeconds(t *testing.T) {
	for window, want := range map[time.Duration]int64{
		30 * time.Second: 30, 29600 * time.Millisecond: 30, 400 * time.Millisecond: 1,
	} {
		if got := windowSeconds(window); got == nil || *got != want {
			t.Errorf("window of %s = %v s, want %d", window, got, want)
		}
	}
	if got := windowSeconds(0); got != nil {
		t.Errorf("no window is %d s, want none", *got)
	}
}
