package cluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	// Fields 4 to 21 are of no interest; field 22 is the start time.
	const middle = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 "
	tests := []struct {
		name      string
		stat      string
		wantState byte
		wantStart uint64
		wantErr   bool
	}{
		{name: "usual", stat: "42 (kube) S" + middle + "12345 99 100\n", wantState: 'S', wantStart: 12345},
		{name: "blanks and parentheses in the name", stat: "42 (a) Z 9 (b) c) R" + middle + "7", wantState: 'R', wantStart: 7},
		{name: "empty", stat: "", wantErr: true},
		{name: "no name", stat: "42 kube S 1 2 3", wantErr: true},
		{name: "cut short", stat: "42 (kube) S 1 2 3", wantErr: true},
		{name: "no number", stat: "42 (kube) S" + middle + "soon", wantErr: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, start, err := parseStat(tt.stat)
			if (err != nil) != tt.wantErr || state != tt.wantState || start != tt.wantStart {
				t.Errorf("parseStat = %c, %d, %v; want %c, %d, error %t", state, start, err, tt.wantState, tt.wantStart, tt.wantErr)
			}
		})
	}
}

// FuzzParseStat: whatever a process calls itself, its state and start time are found.
func FuzzParseStat(f *testing.F) {
	f.Add("kube")
	f.Add(") Z 1 2 (")
	f.Fuzz(func(t *testing.T, name string) {
		state, start, err := parseStat("42 (" + name + ") S" + strings.Repeat(" 1", 18) + " 777 5\n")
		if err != nil || state != 'S' || start != 777 {
			t.Errorf("parseStat with the name %q = %c, %d, %v", name, state, start, err)
		}
	})
}

// sleeper starts a process that carries l's marker.
func sleeper(t *testing.T, l layout) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	cmd.Env = []string{marker + "=" + l.name}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestIdentityOfARecycledPID(t *testing.T) {
	cmd := sleeper(t, newLayout(t.TempDir(), ""))
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	earlier := identity{PID: id.PID, Start: id.Start - 1}
	if earlier.alive() {
		t.Error("another process with the same pid counts as alive")
	}
	if err := earlier.kill(); err != nil {
		t.Errorf("killing the process that had the pid before: %v", err)
	}
	if !id.alive() {
		t.Fatal("the process was killed in the place of the one that had its pid before")
	}
	if err := id.kill(); err != nil {
		t.Fatal(err)
	}
	// Nobody has waited for it, so it is a zombie now, which counts as dead.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = poll(ctx, "the killed process to die", time.Millisecond, func(context.Context) error {
		if id.alive() {
			return errors.New("it is alive")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMarkedFindsOwnProcessesOnly(t *testing.T) {
	mine, others := newLayout(t.TempDir(), ""), newLayout(t.TempDir(), "")
	cmd := sleeper(t, mine)
	sleeper(t, others)
	var pids []int
	for _, p := range mine.marked() {
		pids = append(pids, p.PID)
	}
	if want := []int{cmd.Process.Pid}; !slices.Equal(pids, want) {
		t.Errorf("marked processes %v, want %v", pids, want)
	}
}

func TestKillAll(t *testing.T) {
	l := newLayout(t.TempDir(), "")
	sleeper(t, l)
	sleeper(t, l)
	if err := killAll(t.Context(), l.marked); err != nil {
		t.Fatal(err)
	}
	if left := l.marked(); len(left) > 0 {
		t.Errorf("%d processes are left", len(left))
	}
}

func TestRecordOfAnotherBootIsVoid(t *testing.T) {
	l := newLayout(t.TempDir(), "")
	if err := os.MkdirAll(l.state(), 0o755); err != nil {
		t.Fatal(err)
	}
	for boot, want := range map[string]int{bootID(): 1, "an earlier one": 0} {
		rec := &record{Boot: boot, Processes: []process{{Name: "etcd"}}}
		if err := l.saveRecord(rec); err != nil {
			t.Fatal(err)
		}
		got, err := l.loadRecord()
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Processes) != want {
			t.Errorf("boot %q: %d processes, want %d", boot, len(got.Processes), want)
		}
	}
}

func TestHasEntry(t *testing.T) {
	list := []byte("a=1\x00marker=sluice-12345678\x00b=2\x00")
	for entry, want := range map[string]bool{
		"marker=sluice-12345678": true,
		"marker=sluice-1234567":  false,
		"sluice-12345678":        false,
	} {
		if got := hasEntry(list, entry); got != want {
			t.Errorf("hasEntry(%q) = %t, want %t", entry, got, want)
		}
	}
}
