package daemon

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// EnvFailpoint names a point of the step table ("machine.after", or
// "machine.after#3" for the third time) at which the daemon kills itself, as
// kill -9 would. Tests set it; it does nothing that a user could not do with kill.
const EnvFailpoint = "BANGER_FAILPOINT"

func failpoint(spec string) func(string) {
	if spec == "" {
		return nil
	}
	name, nth, _ := strings.Cut(spec, "#")
	want, err := strconv.Atoi(nth)
	if err != nil {
		want = 1
	}
	var seen atomic.Int64
	return func(point string) {
		if point == name && seen.Add(1) == int64(want) {
			syscall.Kill(os.Getpid(), syscall.SIGKILL) //nolint:errcheck // there is nobody left to tell
			select {}
		}
	}
}
