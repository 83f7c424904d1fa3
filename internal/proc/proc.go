// Package proc starts processes that outlive their parent and finds them again
// without ever mistaking another process for them. It knows nothing of what
// they run.
package proc

// Identity names one process for all time: a pid alone is reused, a pid with
// its start time on one boot is not.
type Identity struct {
	PID int `json:"pid"`
	// Start is the process's start time in clock ticks since boot
	// (/proc/PID/stat field 22).
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id.
	Boot string `json:"boot"`
}

// Zero says that no process is named.
func (id Identity) Zero() bool { return id.PID == 0 }
