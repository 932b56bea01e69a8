package kafka

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// stopTimeout bounds how long a broker may take to end in order. It waits for a controller, which may be gone.
const stopTimeout = 20 * time.Second

// Broker is one process of a Cluster, which may run or not. It keeps its data and its ports.
type Broker struct {
	// ID is Kafka's node id.
	ID int32

	cluster   *Cluster
	dir       string
	addresses map[Listener]string
	process   *process // the latest; nil before the first
}

// process is a broker's, which Wait is called for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // with which it ended; read after done
}

// Address of the broker, host:port; empty where it does not have the listener.
func (b *Broker) Address(l Listener) string { return b.addresses[l] }

// PID of the broker's process, the latest one.
func (b *Broker) PID() int { return b.process.cmd.Process.Pid }

// Log is the path of what the broker has written, in all its runs.
func (b *Broker) Log() string { return filepath.Join(b.dir, "log") }

// Start starts a broker that has ended, with its data and ports, and returns when it is ready. It ends with ctx. After Kill
// it takes 4 s more, until the controller has given up the process that was.
func (b *Broker) Start(ctx context.Context) error {
	if err := b.launch(ctx); err != nil {
		return err
	}
	return b.ready(ctx, []*Broker{b})
}

// Stop ends the broker in order: others take over what it leads before it ends. Without a quorum it is killed after 20 s.
func (b *Broker) Stop() {
	b.signal(syscall.SIGTERM)
	b.Resume()
	select {
	case <-b.process.done:
	case <-time.After(stopTimeout):
		b.Kill()
	}
}

// Kill ends the broker at once, as a crash does. Others take over 4 s later.
func (b *Broker) Kill() {
	if b.process != nil {
		b.signal(syscall.SIGKILL)
		<-b.process.done
	}
}

// Pause stops the broker's process: its ports accept, and nothing answers. Others take over 4 s later.
func (b *Broker) Pause() {
	b.signal(syscall.SIGSTOP)
	awaitStopped(b.PID())
}

// Resume lets a paused broker go on.
func (b *Broker) Resume() { b.signal(syscall.SIGCONT) }

func (b *Broker) signal(s os.Signal) { _ = b.process.cmd.Process.Signal(s) } // it may have ended

// format writes the broker's files and makes its storage, with the users' SCRAM credentials in it.
func (b *Broker) format(ctx context.Context) error {
	if err := b.write(); err != nil {
		return err
	}
	args := []string{"format", "--cluster-id", b.cluster.id, "--config", filepath.Join(b.dir, "server.properties")}
	for _, u := range b.cluster.options.Users {
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			args = append(args, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, u.Name, u.Password))
		}
	}
	_, err := b.cluster.Tool(ctx, "kafka.tools.StorageTool", args...)
	return err
}

// launch starts the process.
func (b *Broker) launch(ctx context.Context) error {
	if b.process != nil {
		select {
		case <-b.process.done:
		default:
			return fmt.Errorf("kafka: broker %d runs", b.ID)
		}
	}
	log, err := os.OpenFile(b.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	args := slices.Concat([]string{
		"-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
	}, b.cluster.options.JVM, []string{"-cp", b.cluster.options.ClassPath, "kafka.Kafka", filepath.Join(b.dir, "server.properties")})
	p := &process{cmd: exec.CommandContext(ctx, "java", args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = endsWithUs()
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start broker %d: %w", b.ID, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	b.process = p
	return nil
}

// ready waits until the broker itself, asked for what it knows, names a controller and all of others. A log that says so
// is not enough: what a client gets counts.
func (b *Broker) ready(ctx context.Context, others []*Broker) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Address(PlaintextListener)))
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		known, err := b.knows(ctx, client, others)
		if known {
			return nil
		}
		select {
		case <-tick.C:
		case <-b.process.done:
			err = fmt.Errorf("it ended: %w", b.process.err)
		case <-ctx.Done():
			err = errors.Join(context.Cause(ctx), err)
		}
		if ended(b.process.done) || ctx.Err() != nil {
			said, _ := os.ReadFile(b.Log()) // the error says more than that there is no log
			return fmt.Errorf("broker %d does not become ready: %w: %s", b.ID, err, tail(said))
		}
	}
}

// knows asks the broker once.
func (b *Broker) knows(ctx context.Context, client *kgo.Client, others []*Broker) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ask := kmsg.NewPtrMetadataRequest()
	ask.Topics = []kmsg.MetadataRequestTopic{} // none; nil is all
	answer, err := client.SeedBrokers()[0].Request(ctx, ask)
	if err != nil {
		return false, err
	}
	metadata := answer.(*kmsg.MetadataResponse)
	for _, other := range others {
		if !slices.ContainsFunc(metadata.Brokers, func(m kmsg.MetadataResponseBroker) bool { return m.NodeID == other.ID }) {
			return false, fmt.Errorf("it does not know broker %d", other.ID)
		}
	}
	if metadata.ControllerID < 0 {
		return false, errors.New("it does not know a controller")
	}
	return true, nil
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
