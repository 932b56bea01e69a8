package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// identity names one process for good: pids are recycled, a pid with its start time is not.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, /proc/PID/stat field 22
}

// process is a program that was started, as recorded in the state file.
type process struct {
	identity
	Name string   `json:"name"`
	Args []string `json:"args"`
}

// record is the state file: what runs, so that a later command can attach to it or end it.
type record struct {
	Boot             string    `json:"boot"` // start times count from a boot, so those of another boot mean nothing
	ControlPlaneOnly bool      `json:"controlPlaneOnly"`
	APIServer        string    `json:"apiServer"` // host:port
	Complete         bool      `json:"complete"`  // Start got to its end
	Processes        []process `json:"processes"`
}

// program is one program to start.
type program struct {
	name string // names the process and its log file
	path string
	args []string
}

// marker is the environment variable that every process of a cluster carries. It finds those that were started a moment
// before their starter died and could record them, and the shims that containerd starts.
const marker = "SLUICE_TEST_CLUSTER"

// spawn starts p in the network namespace called netns, as a session of its own that outlives this process, and adds it
// to the state file. Its output goes to its log file, which it begins anew.
func (l layout) spawn(netns string, rec *record, p program) error {
	log, err := os.Create(l.path("logs", p.name+".log"))
	if err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }()
	// Not CommandContext: the program is meant to outlive this command and its context.
	cmd := exec.Command(p.path, p.args...) //nolint:noctx // see above
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = l.dir
	cmd.SysProcAttr = detached()
	cmd.Env = []string{
		"PATH=" + l.bin + ":" + systemPath, // containerd finds its shim by it
		"HOME=" + l.dir,
		marker + "=" + l.name,
	}
	if err := inNetns(netns, cmd.Start); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	_ = cmd.Process.Release() // nobody waits: as a zombie it counts as dead, and Down reaps it
	rec.Processes = slices.DeleteFunc(rec.Processes, func(old process) bool { return old.Name == p.name })
	rec.Processes = append(rec.Processes, process{identity: id, Name: p.name, Args: p.args})
	return l.saveRecord(rec)
}

// systemPath finds the system's programs, whatever PATH the caller has: that of cron or of `su` lacks the sbin ones.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// identify returns the identity of the process that has pid now.
func identify(pid int) (identity, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	_, start, err := parseStat(string(b))
	if err != nil {
		return identity{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	return identity{PID: pid, Start: start}, nil
}

// alive reports whether the process still runs. A zombie does not.
func (p identity) alive() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	state, start, err := parseStat(string(b))
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// parseStat returns the state and the start time in a line of /proc/PID/stat. The command's name, field 2, may itself hold
// blanks and parentheses: what counts is after the last one.
func parseStat(stat string) (state byte, start uint64, err error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("no command in stat line %q", stat)
	}
	const state1, start1 = 0, 19 // fields 3 and 22, counted after field 2
	fields := strings.Fields(stat[i+1:])
	if len(fields) <= start1 || len(fields[state1]) != 1 {
		return 0, 0, fmt.Errorf("short stat line %q", stat)
	}
	start, err = strconv.ParseUint(fields[start1], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time in stat line %q: %w", stat, err)
	}
	return fields[state1][0], start, nil
}

// saveRecord replaces the state file. It is whole at any time: the old one or the new one.
func (l layout) saveRecord(rec *record) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	return writeFile(l.state("record.json"), b, 0o644)
}

// loadRecord reads the state file. Without one, or with that of an earlier boot, nothing is recorded.
func (l layout) loadRecord() (*record, error) {
	boot := bootID()
	b, err := os.ReadFile(l.state("record.json"))
	if errors.Is(err, os.ErrNotExist) {
		return &record{Boot: boot}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state: %w", err)
	}
	rec := new(record)
	if err := json.Unmarshal(b, rec); err != nil || rec.Boot != boot {
		return &record{Boot: boot}, nil //nolint:nilerr // a broken file records nothing; the marker finds the rest
	}
	return rec, nil
}

// bootID changes with every boot. It is empty where the kernel tells none.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// dead lists the recorded processes that no longer run.
func (r *record) dead() []string {
	var names []string
	for _, p := range r.Processes {
		if !p.alive() {
			names = append(names, p.Name)
		}
	}
	return names
}

// died is a fatal error with the end of the log of the first recorded process that no longer runs, or nil.
func (l layout) died(rec *record) error {
	dead := rec.dead()
	if len(dead) == 0 {
		return nil
	}
	path := l.path("logs", dead[0]+".log")
	b, _ := os.ReadFile(path)
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	lines = lines[max(0, len(lines)-12):]
	return fatal{fmt.Errorf("%s ended by itself; the end of %s:\n%s", dead[0], path, bytes.Join(lines, []byte("\n")))}
}

// marked lists the living processes that carry the cluster's marker or are a shim of its containerd.
func (l layout) marked() []identity {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []identity
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, err := identify(pid) // before the look, so that the identity is at worst an older process's
		if err != nil || !id.alive() {
			continue
		}
		env, _ := os.ReadFile(dir + "/environ") // not readable: not ours
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if hasEntry(env, marker+"="+l.name) || hasEntry(cmdline, l.containerdSocket()) && hasEntry(cmdline, "-address") {
			found = append(found, id)
		}
	}
	return found
}

// hasEntry reports whether want is one of the NUL-terminated entries of list.
func hasEntry(list []byte, want string) bool {
	for entry := range bytes.SplitSeq(list, []byte{0}) {
		if string(entry) == want {
			return true
		}
	}
	return false
}

// killAll ends every process that find returns, and looks again until it returns none: what dies may have started
// something meanwhile. It uses SIGKILL at once, because all state goes away with the processes.
func killAll(ctx context.Context, find func() []identity) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	killed := make(map[identity]bool)
	defer func() {
		for p := range killed {
			p.reap()
		}
	}()
	return poll(ctx, "processes to end", 20*time.Millisecond, func(context.Context) error {
		left := find()
		if len(left) == 0 {
			return nil
		}
		for _, p := range left {
			if err := p.kill(); err != nil {
				return err
			}
			killed[p] = true
		}
		return fmt.Errorf("%d are alive, the first with pid %d", len(left), left[0].PID)
	})
}

// writeFile replaces the file at path in one step.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
