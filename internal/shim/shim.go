// Package shim is the small process beside each VM that outlives the daemon:
// it keeps the guest's console in a capped log and runs the VM's userspace
// network. It is started by the daemon (`bangerd shim`), reads its Config as
// one JSON document on standard input, and ends when the hypervisor's ends of
// its sockets close or it is told to stop. It holds no state worth keeping.
//
// It parses what a hostile guest sends, so before the first byte of it is read
// the process gives up root, new privileges, other programs, and every file
// but the few that name the host's resolvers.
package shim

import (
	"time"

	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/network/userspace"
	"github.com/banger-dev/banger/internal/proc"
)

// Config is what a shim is told at its start.
type Config struct {
	VM string `json:"vm"`
	// Dir is the VM's own directory: the mark by which a shim is found, and
	// the place of its own log.
	Dir string `json:"dir"`
	// ConsoleSocket is listened on (0600) before the shim says it is ready;
	// what is written to it goes to ConsoleLog, a pair of files
	// ("console.log", "console.log.1") that together never pass ConsoleCap.
	ConsoleSocket string `json:"console_socket"`
	ConsoleLog    string `json:"console_log"`
	ConsoleCap    int64  `json:"console_cap"` // bytes; default 4 MiB
	// Net, with the NIC's stream socket passed as file descriptor 3, or nil.
	Net *network.Link `json:"net,omitempty"`
	// Control is the shim's own socket (0600): status and stop, as JSON lines.
	Control string `json:"control"`
	// User is whom the shim becomes once its files are open, and who may
	// write to the console's socket; nil for whom it was started as.
	User *proc.Credential `json:"user,omitempty"`
}

// DefaultConsoleCap bounds a console's log where Config says nothing.
const DefaultConsoleCap = 4 << 20

// Ref finds a shim again.
type Ref struct {
	VM      string        `json:"vm"`
	Process proc.Identity `json:"process"`
	Control string        `json:"control"`
}

// Report is what a shim says of itself.
type Report struct {
	VM      string        `json:"vm"`
	Started time.Time     `json:"started"`
	Console ConsoleReport `json:"console"`
	// Net is nil for a VM without a network of the shim's.
	Net *NetReport `json:"net,omitempty"`
	// Confined lists what the process gave up: "user", "no_new_privs",
	// "seccomp", "landlock", "capabilities".
	Confined []string `json:"confined"`
}

// ConsoleReport is the console's part of a Report.
type ConsoleReport struct {
	Connected bool   `json:"connected"`
	Bytes     uint64 `json:"bytes"` // read from the guest
	Lost      uint64 `json:"lost"`  // read, but not written: the disk did not take them
}

// NetReport is the network's part of a Report.
type NetReport struct {
	// Up is false once the NIC's wire has ended.
	Up bool `json:"up"`
	userspace.Counters
	Refusals []userspace.Refused `json:"refusals,omitempty"` // the latest, oldest first
}
