// Package e2e holds the stories: what a user of Sluice sees, on the real one-node cluster of test/cluster, with Sluice
// running in it as pods. They are Go tests behind the build tag e2e and run inside the cluster's network namespace,
// where Services and pods can be reached; `make e2e` builds the cluster, installs Sluice from this tree and runs them.
//
// Every story makes a namespace of its own. Those that stop a part of Sluice run alone, after the others; the last one
// uninstalls it.
package e2e
