package requests

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/providers"
)

// benchPods makes this program the pods of BenchmarkScrapePod, so that what they cost is not counted: the number of
// pods, and whether they serve https.
var benchPods = flag.String("bench-pods", "", "serve as many pods, and by https if that follows the number")

func TestMain(m *testing.M) {
	flag.Parse()
	if *benchPods != "" {
		if err := servePods(strings.Fields(*benchPods)); err != nil {
			log.Fatal(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// servePods serves pods until stdin ends, each at a port of its own, which it prints.
func servePods(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	body := expositionOfPod(100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, body)
	}))
	server.StartTLS() // for its certificate
	defer server.Close()
	for range n {
		ln, err := new(net.ListenConfig).Listen(nil, "tcp", "127.0.0.1:0") //nolint:staticcheck // there is no context to end it by
		if err != nil {
			return err
		}
		fmt.Println(ln.Addr())
		if len(args) > 1 {
			ln = tls.NewListener(ln, server.TLS)
		}
		go func() { _ = server.Config.Serve(ln) }()
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func startPods(b *testing.B, n int, https bool) []providers.Target {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	pods := strconv.Itoa(n)
	if https {
		pods += " https"
	}
	cmd := exec.Command(program, "-bench-pods="+pods) //nolint:noctx // it ends with its stdin
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	var targets []providers.Target
	for lines := bufio.NewScanner(stdout); len(targets) < n && lines.Scan(); {
		targets = append(targets, providers.Target{
			Kind: providers.Pod, Function: hello, Address: lines.Text(), Scrape: providers.Scrape{
				Path: "/metrics", Preset: v1alpha1.Kubeless, TLS: https, InsecureSkipVerify: https,
			},
		})
	}
	return targets
}

// BenchmarkScrapePod scrapes 1,000 pods one after the other, over kept connections. Beside the time that passes, which
// is that of both sides, it tells what this side uses: the CPU time of a scrape, and the memory of a connection.
func BenchmarkScrapePod(b *testing.B) {
	for _, scheme := range []string{"http", "https"} {
		b.Run(scheme, func(b *testing.B) {
			const pods = 1000
			targets := startPods(b, pods, scheme == "https")
			scraper := NewScraper()
			defer scraper.Close()
			measure := func(t providers.Target) {
				if m, err := scraper.Measure(b.Context(), t); err != nil || m.Functions[hello].Started != 10 {
					b.Fatal(m, err)
				}
			}
			before := memory()
			for _, t := range targets {
				measure(t)
			}
			kept := float64(memory()-before) / pods / 1024
			b.ReportAllocs()
			cpu, i := cpuTime(), 0
			for b.Loop() {
				measure(targets[i%pods])
				i++
			}
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(i), "cpu-µs/op")
			b.ReportMetric(kept, "KiB/connection")
		})
	}
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
