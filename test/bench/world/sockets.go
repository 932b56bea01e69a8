package world

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Connections counts the established TCP connections that a process has to a port, by what the kernel says.
func Connections(pid int, port uint16) (int, error) {
	to := map[string]bool{} // sockets, by their inode
	for _, family := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, family))
		if err != nil {
			return 0, err
		}
		for line := range bytes.Lines(table) {
			// "sl local rem st tx:rx tr:when retrnsmt uid timeout inode ...", addresses as hex:hex; state 1 is established.
			fields := strings.Fields(string(line))
			if len(fields) < 10 || fields[3] != "01" {
				continue
			}
			_, hex, _ := strings.Cut(fields[2], ":")
			if remote, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(remote) == port {
				to["socket:["+fields[9]+"]"] = true
			}
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, file := range files {
		if link, err := os.Readlink(filepath.Join(dir, file.Name())); err == nil && to[link] { // else it is closed meanwhile
			n++
		}
	}
	return n, nil
}
