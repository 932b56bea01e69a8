package kafka

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// toolTimeout bounds a run of a tool. On two idle cores one takes one to two seconds.
const toolTimeout = 2 * time.Minute

// Partition of a topic.
type Partition struct {
	Topic     string
	Partition int32
}

// None is an offset that there is not.
const None = -1

// Described is what Kafka's own tool says of a group's partition.
type Described struct {
	// Committed, End and Lag are None where the tool shows a dash: no committed offset, or nobody who leads.
	Committed, End, Lag int64
	// Member that the partition is assigned to; empty where none is.
	Member string
}

// Tool runs the main class of one of Kafka's tools, as its shell scripts do, and returns its standard output. Of an exit
// code other than 0 the error has the end of what it wrote.
func (c *Cluster) Tool(ctx context.Context, class string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	java := []string{
		"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-cp", c.options.ClassPath, class,
	}
	cmd := exec.CommandContext(ctx, "java", append(java, args...)...)
	cmd.SysProcAttr = endsWithUs()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", class, strings.Join(args, " "), err, tail(append(stdout.Bytes(), stderr.Bytes()...)))
	}
	return stdout.String(), nil
}

// Lag is what kafka-consumer-groups.sh --describe says of group. It takes seconds, which the brokers feel; what it says
// is of some time in between.
func (c *Cluster) Lag(ctx context.Context, group string) (map[Partition]Described, error) {
	out, err := c.Tool(ctx, "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
		"--bootstrap-server", strings.Join(c.Addresses(PlaintextListener), ","), "--describe", "--group", group,
		"--timeout", strconv.FormatInt(toolTimeout.Milliseconds(), 10))
	if err != nil {
		return nil, err
	}
	lag, err := parseDescribed(out)
	if err != nil {
		return nil, fmt.Errorf("describe group %q: %w: %s", group, err, out)
	}
	return lag, nil
}

// parseDescribed reads the tool's table, whose columns are found by the names in its first line.
func parseDescribed(out string) (map[Partition]Described, error) {
	var header []string
	described := map[Partition]Described{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
			continue
		case fields[0] == "GROUP":
			header = fields
			continue
		case header == nil:
			continue // what is said before the table
		}
		column := func(name string) string {
			if i := slices.Index(header, name); i >= 0 && i < len(fields) && fields[i] != "-" {
				return fields[i]
			}
			return ""
		}
		partition, err := strconv.ParseInt(column("PARTITION"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("partition: %w", err)
		}
		d := Described{Member: column("CONSUMER-ID")}
		for name, to := range map[string]*int64{"CURRENT-OFFSET": &d.Committed, "LOG-END-OFFSET": &d.End, "LAG": &d.Lag} {
			*to = None
			if text := column(name); text != "" {
				if *to, err = strconv.ParseInt(text, 10, 64); err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		described[Partition{Topic: column("TOPIC"), Partition: int32(partition)}] = d
	}
	if header == nil {
		return nil, fmt.Errorf("there is no table")
	}
	return described, nil
}
