package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// runtime is one real piece of software that exposes counts of requests, and what is known of how it counts.
type runtime struct {
	// Name of the capture.
	Name string
	// Dir with its source, where that is not Name.
	Dir string
	// Manifest is the list of its dependencies, where that is not package.json. It makes it another installation.
	Manifest string
	// Constructed is true when the software itself could not be had, and what runs has its names and labels.
	Constructed bool
	// Preset that is to read it.
	Preset string
	// Language says how it is installed and started: python, node, go, java, spring, envoy.
	Language string
	// Env is added to its environment.
	Env []string
	// OwnPort is true when the metrics are at a port of their own, METRICS_PORT.
	OwnPort bool
	// Path of the metrics.
	Path string
	// Calls is true when the function makes a call of its own where it is told to.
	Calls bool
	// Counts says how it counts; it is part of what is saved.
	Counts counts
}

// counts says how a runtime counts, as far as its software does and a preset can read it.
type counts struct {
	// AtStart is true when a request is counted as it begins, false when it is as it ends.
	AtStart bool `json:"atStart"`
	// Gauge is true when there is a gauge of requests in flight.
	Gauge bool `json:"gauge"`
	// Durations is true when there is a histogram or summary of durations.
	Durations bool `json:"durations"`
	// FailedUntimed is true when requests that fail have no duration.
	FailedUntimed bool `json:"failedUntimed,omitempty"`
	// LateDurations is true when durations are only shown some seconds after they were measured.
	LateDurations bool `json:"lateDurations,omitempty"`
	// Probes is true when requests to /healthz count, and no label that every such runtime has tells them apart.
	Probes bool `json:"probes,omitempty"`
	// Scrapes is true when scrapes count, and no label tells them.
	Scrapes bool `json:"scrapes,omitempty"`
	// Absent is true when there is no counter before the first request.
	Absent bool `json:"absent,omitempty"`
	// Nothing is true when the answer is no exposition and must be refused.
	Nothing bool `json:"nothing,omitempty"`
}

var runtimes = []runtime{
	{
		Name: "kubeless-python", Preset: "Kubeless", Language: "python", Path: "/metrics",
		Counts: counts{AtStart: true, Durations: true},
	},
	{
		Name: "kubeless-node", Preset: "Kubeless", Language: "node", Path: "/metrics",
		Counts: counts{AtStart: true, Durations: true, FailedUntimed: true},
	},
	{
		Name: "kubeless-go", Preset: "Kubeless", Language: "go", Path: "/metrics",
		Counts: counts{AtStart: true, Durations: true, Absent: true},
	},
	{
		Name: "kubeless-java", Preset: "Kubeless", Language: "java", Path: "/metrics",
		Counts: counts{AtStart: true, Durations: true},
	},
	{
		Name: "kubeless-java-old", Dir: "kubeless-java", Preset: "Kubeless", Language: "java", Path: "/metrics",
		Env: []string{"NO_METRICS_PATH=1"}, Counts: counts{Nothing: true},
	},
	{
		Name: "otel-go", Preset: "OpenTelemetry", Language: "go", OwnPort: true, Path: "/metrics", Calls: true,
		Counts: counts{Durations: true},
	},
	{
		Name: "otel-python", Preset: "OpenTelemetry", Language: "python", OwnPort: true, Path: "/metrics", Calls: true,
		Counts: counts{Gauge: true, Durations: true},
	},
	{
		Name: "otel-python-stable", Dir: "otel-python", Preset: "OpenTelemetry", Language: "python", OwnPort: true,
		Env: []string{"OTEL_SEMCONV_STABILITY_OPT_IN=http"}, Path: "/metrics", Calls: true,
		Counts: counts{Gauge: true, Durations: true},
	},
	{
		Name: "otel-python-dup", Dir: "otel-python", Preset: "OpenTelemetry", Language: "python", OwnPort: true,
		Env: []string{"OTEL_SEMCONV_STABILITY_OPT_IN=http/dup"}, Path: "/metrics", Calls: true,
		Counts: counts{Gauge: true, Durations: true},
	},
	{
		Name: "otel-node", Preset: "OpenTelemetry", Language: "node", OwnPort: true, Path: "/metrics", Calls: true,
		Counts: counts{Durations: true, Absent: true},
	},
	{
		Name: "otel-node-scrapes", Dir: "otel-node", Preset: "OpenTelemetry", Language: "node", OwnPort: true,
		Env: []string{"NO_HOOK=1"}, Path: "/metrics", Calls: true,
		Counts: counts{Durations: true, Probes: true, Scrapes: true},
	},
	{
		Name: "otel-node-old", Dir: "otel-node", Manifest: "package-old.json", Preset: "OpenTelemetry", Language: "node",
		OwnPort: true, Path: "/metrics", Calls: true,
		Counts: counts{Durations: true, Absent: true},
	},
	{
		Name: "otel-java", Preset: "OpenTelemetry", Language: "java", OwnPort: true, Path: "/metrics", Calls: true,
		// Nothing of this machine.
		Env: []string{"OTEL_JAVA_DISABLED_RESOURCE_PROVIDERS=io.opentelemetry.instrumentation.resources.HostResourceProvider," +
			"io.opentelemetry.instrumentation.resources.OsResourceProvider," +
			"io.opentelemetry.instrumentation.resources.ProcessResourceProvider," +
			"io.opentelemetry.instrumentation.resources.ProcessRuntimeResourceProvider"},
		Counts: counts{Durations: true},
	},
	{
		Name: "envoy", Preset: "Envoy", Language: "envoy", OwnPort: true, Path: "/stats/prometheus", Calls: true,
		Counts: counts{AtStart: true, Gauge: true, Durations: true, LateDurations: true, Probes: true},
	},
	{
		Name: "istio-constructed", Dir: "istio", Constructed: true, Preset: "Istio", Language: "go", OwnPort: true,
		Path: "/stats/prometheus", Calls: true,
		Counts: counts{Durations: true, Absent: true},
	},
	{
		Name: "generic-flask", Preset: "Generic", Language: "python", Path: "/metrics",
		Counts: counts{Durations: true},
	},
	{
		Name: "generic-fastapi", Preset: "Generic", Language: "python", Path: "/metrics",
		Counts: counts{Durations: true},
	},
	{
		Name: "generic-express", Preset: "Generic", Language: "node", Path: "/metrics",
		Counts: counts{Durations: true},
	},
	{
		Name: "generic-spring", Preset: "Generic", Language: "spring", Path: "/actuator/prometheus",
		// Nothing of the disk, whose label is a path of this machine.
		Env: []string{
			"MANAGEMENT_ENDPOINTS_WEB_EXPOSURE_INCLUDE=prometheus", "MANAGEMENT_METRICS_ENABLE_DISK=false",
		},
		Counts: counts{Durations: true},
	},
	{
		Name: "generic-go", Preset: "Generic", Language: "go", Path: "/metrics",
		Counts: counts{Durations: true, Absent: true},
	},
}

func (r runtime) dir() string { return cmp.Or(r.Dir, r.Name) }

// prepare installs into dir what the runtime needs, unless it is there.
func (r runtime) prepare(ctx context.Context, source, dir string) error {
	done := filepath.Join(dir, ".prepared")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var steps [][]string
	switch r.Language {
	case "python", "envoy":
		steps = [][]string{
			{"python3", "-m", "venv", "venv"},
			{"venv/bin/pip", "install", "--quiet", "-r", filepath.Join(source, "requirements.txt")},
		}
	case "node":
		steps = [][]string{
			{"cp", filepath.Join(source, cmp.Or(r.Manifest, "package.json")), "package.json"},
			{"cp", filepath.Join(source, "function.js"), "."},
			{"npm", "install", "--no-audit", "--no-fund", "--loglevel=error"},
		}
	case "go":
		steps = [][]string{{"go", "-C", source, "build", "-o", filepath.Join(dir, "function"), "."}}
	case "java", "spring":
		steps = [][]string{
			{
				"mvn", "-q", "-B", "-f", filepath.Join(source, "pom.xml"), "dependency:copy-dependencies",
				"-DoutputDirectory=" + filepath.Join(dir, "lib"),
			},
			// Parameters are named: Spring binds by name.
			{"javac", "-parameters", "-cp", "lib/*", "-d", ".", filepath.Join(source, "Function.java")},
		}
	}
	if r.Language == "envoy" {
		steps = append(steps, []string{
			"go", "-C", filepath.Join(filepath.Dir(source), "generic-go"), "build", "-o",
			filepath.Join(dir, "function"), ".",
		})
	}
	for _, step := range steps {
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Dir = dir
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(step, " "), err, output)
		}
	}
	return os.WriteFile(done, nil, 0o644)
}

// command is what starts the runtime, in dir.
func (r runtime) command(source, dir string, p ports) ([]string, error) {
	switch r.Language {
	case "python":
		return []string{"venv/bin/python", filepath.Join(source, r.dir(), "function.py")}, nil
	case "node":
		return []string{"node", "function.js"}, nil
	case "go":
		return []string{"./function"}, nil
	case "java":
		args := []string{"java", "-cp", ".:lib/*"}
		if agents, _ := filepath.Glob(filepath.Join(dir, "lib", "opentelemetry-javaagent-*.jar")); len(agents) == 1 {
			args = append(args, "-javaagent:"+agents[0])
		}
		return append(args, "Function"), nil
	case "spring":
		return []string{"java", "-cp", ".:lib/*", "function.Function"}, nil
	case "envoy":
		config, err := os.ReadFile(filepath.Join(source, "envoy", "envoy.yaml"))
		if err != nil {
			return nil, err
		}
		written := filepath.Join(dir, "envoy.yaml")
		err = os.WriteFile(written, []byte(strings.NewReplacer(
			"INBOUND_PORT", p.inbound, "METRICS_PORT", p.metrics, "ADMIN_PORT", p.admin, "FUNCTION_PORT", p.function,
			"OUTBOUND_PORT", p.outbound, "ELSEWHERE_PORT", p.elsewhere).Replace(string(config))), 0o644)
		return []string{"venv/bin/envoy", "-c", written, "--log-level", "warning", "--use-dynamic-base-id"}, err
	default:
		return nil, errors.New("no such language: " + r.Language)
	}
}

// versions lists the software that was run, as its package manager or module says.
func (r runtime) versions(ctx context.Context, dir string) (string, error) {
	var cmd []string
	switch r.Language {
	case "python", "envoy":
		cmd = []string{"sh", "-c", "venv/bin/python --version; venv/bin/pip list --format=freeze --disable-pip-version-check" +
			" | grep -iE '^(bottle|cherrypy|prometheus|flask|fastapi|starlette|uvicorn|opentelemetry|envoy)'"}
	case "node":
		cmd = []string{"sh", "-c", "echo node $(node --version); npm ls --depth=0 --parseable=false 2>/dev/null | grep -o '[@a-z/-]*@[0-9.]*$'"}
	case "go":
		cmd = []string{"sh", "-c", "go version -m function | awk '$1 == \"dep\" && /prometheus|otel/ && !/indirect/ {print $2, $3} NR == 1 {print $2}'"}
	default:
		cmd = []string{"sh", "-c", "java -version 2>&1 | head -1; ls lib | grep -E 'simpleclient_httpserver|javaagent|micrometer-registry|spring-boot-3|spring-boot-4|prometheus-metrics-core'"}
	}
	c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	c.Dir = dir
	output, err := c.Output()
	return strings.TrimSpace(string(output)), err
}
