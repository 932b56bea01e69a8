package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFailureNamesTheStage(t *testing.T) {
	never := func(seen ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			i := 0
			return until(ctx, time.Second, func(string) {}, func(context.Context) (string, bool, error) {
				i = min(i+1, len(seen))
				return seen[i-1], false, nil
			})
		}
	}
	broken := errors.New("3 of 40 requests failed")
	tests := []struct {
		name   string
		run    func(context.Context) error
		cancel time.Duration
		want   string
	}{
		{
			name: "not observed", run: never("1 replica", "2 replicas"),
			want: `demo: stage "replicas follow" was not observed within 90s: last seen: 2 replicas`,
		},
		{
			name: "a call that hangs until the deadline hides nothing",
			run: func(ctx context.Context) error {
				first := true
				return until(ctx, time.Second, func(string) {}, func(ctx context.Context) (string, bool, error) {
					if first {
						first = false
						return "1 replica", false, nil
					}
					<-ctx.Done()
					return "context deadline exceeded", false, nil
				})
			},
			want: `demo: stage "replicas follow" was not observed within 90s: last seen: 1 replica`,
		},
		{
			name: "failed", run: func(context.Context) error { return broken },
			want: `demo: stage "replicas follow": 3 of 40 requests failed`,
		},
		{
			name: "interrupted", run: never("1 replica"), cancel: 10 * time.Second,
			want: `demo: stage "replicas follow": interrupted: context canceled`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel > 0 {
					time.AfterFunc(tt.cancel, cancel)
				}
				later := false
				var out strings.Builder
				err := runStages(ctx, terminal{w: &out}, []stage{
					{"before", "is fine", fixed(time.Second), func(context.Context) error { return nil }},
					{"replicas follow", "as they must", fixed(90 * time.Second), tt.run},
					{"after", "is not reached", fixed(time.Second), func(context.Context) error { later = true; return nil }},
				})
				if err == nil || err.Error() != tt.want {
					t.Errorf("error = %v\nwant    %s", err, tt.want)
				}
				var named *StageError
				if !errors.As(err, &named) || named.Stage != "replicas follow" {
					t.Errorf("error is no StageError of its stage: %#v", err)
				}
				if later {
					t.Error("a stage ran after one that failed")
				}
				if !strings.Contains(out.String(), "[2/3] replicas follow: as they must\n      FAILED after ") {
					t.Errorf("output:\n%s", out.String())
				}
			})
		})
	}
}

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var told []string
		looks := 0
		err := until(t.Context(), time.Second, func(s string) { told = append(told, fmt.Sprint(time.Since(began), " ", s)) },
			func(context.Context) (string, bool, error) {
				looks++
				return fmt.Sprint("state ", looks/3), looks == 6, nil
			})
		if err != nil {
			t.Fatal(err)
		}
		// Looks are at 0 s to 5 s; what is seen changes with the third and the sixth.
		if diff := cmp.Diff([]string{"0s state 0", "2s state 1", "5s state 2"}, told); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
}

func TestTerminal(t *testing.T) {
	show := func(colour bool) string {
		var b strings.Builder
		out := terminal{w: &b, colour: colour}
		out.heading(1, 2, stage{name: "sleep", title: "it sleeps"})
		out.line("a\nb")
		out.done(1234 * time.Millisecond)
		return b.String()
	}
	if diff := cmp.Diff("\n[1/2] sleep: it sleeps\n      a\n      b\n      observed after 1.2s\n", show(false)); diff != "" {
		t.Errorf("plain (-want +got):\n%s", diff)
	}
	want := "\n\x1b[1m[1/2] sleep:\x1b[0m it sleeps\n      a\n      b\n      \x1b[32mobserved\x1b[0m after 1.2s\n"
	if diff := cmp.Diff(want, show(true)); diff != "" {
		t.Errorf("in colour (-want +got):\n%s", diff)
	}
}
