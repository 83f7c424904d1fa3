package qemu

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

// causeOf reads the reason of a SHUTDOWN event.
func causeOf(reason string) hypervisor.Cause {
	switch reason {
	case "guest-shutdown":
		return hypervisor.CausePowerOff
	case "guest-reset", "guest-panic":
		return hypervisor.CauseReset
	case "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui":
		return hypervisor.CauseHost
	case "host-error":
		return hypervisor.CauseCrash
	}
	return hypervisor.CauseUnknown
}

// exitOf puts together how a machine ended: what the process's end says, what
// QEMU said before, and whether it was this handle that killed it.
func exitOf(e proc.Exit, said hypervisor.Cause, killed bool, logged string) hypervisor.Exit {
	x := hypervisor.Exit{Known: e.Known, Code: e.Code, Signal: e.Signal, Cause: said}
	switch {
	case killed && (said == hypervisor.CauseUnknown || e.Signal == int(syscall.SIGKILL)):
		x.Cause = hypervisor.CauseHost
	case said != hypervisor.CauseUnknown:
	case !e.Known:
	case e.Signal == int(syscall.SIGKILL) || e.Signal == int(syscall.SIGTERM):
		x.Cause = hypervisor.CauseHost
	case e.Signal != 0 || e.Code != 0:
		x.Cause = hypervisor.CauseCrash
	}
	x.Reason = reason(x, killed && x.Cause == hypervisor.CauseHost, logged)
	return x
}

func reason(x hypervisor.Exit, killed bool, logged string) string {
	switch {
	case killed:
		return "it was killed"
	case x.Cause == hypervisor.CausePowerOff:
		return "the guest powered off"
	case x.Cause == hypervisor.CauseReset:
		return "the guest rebooted, or its kernel panicked"
	}
	how := "QEMU ended"
	switch {
	case x.Signal != 0:
		how = fmt.Sprintf("QEMU was ended by signal %d (%s)", x.Signal, syscall.Signal(x.Signal))
	case x.Known && x.Code != 0:
		how = fmt.Sprintf("QEMU ended with status %d", x.Code)
	}
	if logged != "" {
		how += ": " + logged
	}
	return how
}

// tail is how much of a log is looked at for its last line.
const tail = 8 << 10

// lastLine gives the last line of QEMU's log that says something, without the
// program's name, clean and of bounded length; "" when there is none.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, tail))
	if err != nil {
		return ""
	}
	// QEMU calls itself by the last element of argv[0], the VM's marker,
	// which ends in the directory that the log lies in.
	prog := filepath.Base(filepath.Dir(path))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		line := clean(lines[i])
		for _, prefix := range []string{prog + ": ", "qemu-system-x86_64: ", "launch: "} {
			line = strings.TrimPrefix(line, prefix)
		}
		if line != "" && !harmless(line) {
			return line
		}
	}
	return ""
}

// harmless says that QEMU writes the line in the ordinary course of things.
func harmless(line string) bool {
	for _, s := range []string{"Expected vmdescription section", "terminating on signal", "warning: "} {
		if strings.HasPrefix(line, s) {
			return true
		}
	}
	return false
}

const lineLimit = 300

// clean makes a line that a guest may have had its part in fit to be shown.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError ||
			(r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= lineLimit {
		return s
	}
	cut := lineLimit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
