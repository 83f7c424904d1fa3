// Package shim is the small process beside each VM that outlives the daemon:
// it keeps the guest's console in a capped log and runs the VM's userspace
// network. It is started by the daemon (`bangerd shim`), reads its Config as
// one JSON document on standard input, and ends when the hypervisor's ends of
// its sockets close or it is told to stop. It holds no state worth keeping.
package shim

import (
	"github.com/banger-dev/banger/internal/network"
	"github.com/banger-dev/banger/internal/proc"
)

// Config is what a shim is told at its start.
type Config struct {
	VM string `json:"vm"`
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
}

// Ref finds a shim again.
type Ref struct {
	VM      string        `json:"vm"`
	Process proc.Identity `json:"process"`
	Control string        `json:"control"`
}
