// Package doctor says what this host can do for banger: every condition with
// its state, why it matters and the commands that mend it on this
// distribution. It proves where it can (runs the program, makes the namespace)
// and guesses nowhere.
//
// It is plain data and functions: the composition root picks the checks, the
// CLI draws them. It changes nothing on the host.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
)

// Status of a check.
type Status string

// The statuses. Fail is only for what the configured set-up needs: with a Fail
// banger does not do its work, with a Warn it does so less well. Info is worth
// knowing and no fault.
const (
	OK   Status = "ok"
	Info Status = "info"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one condition of the host.
type Check struct {
	Name    string // stable, lower case
	Status  Status
	Message string   // one line: what was found
	Why     string   // one line: why it matters
	Fix     []string // commands or steps, in order; none when all is well
}

// Provider finds out about some conditions. It honours ctx; what it cannot
// find out is a Check too, not a panic.
type Provider func(ctx context.Context) []Check

// limit bounds one provider.
const limit = 15 * time.Second

// Report is every check in the order of the providers.
type Report struct{ Checks []Check }

// Run runs the providers at the same time, each with 15 seconds at most.
func Run(ctx context.Context, providers []Provider) Report {
	results := make([][]Check, len(providers))
	var wg sync.WaitGroup
	for i, p := range providers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			results[i] = p(ctx)
		}()
	}
	wg.Wait()
	var r Report
	for _, c := range results {
		r.Checks = append(r.Checks, c...)
	}
	return r
}

// Failed says whether something that banger needs is missing: then `banger
// doctor` ends with a status that is not zero.
func (r Report) Failed() bool {
	for _, c := range r.Checks {
		if c.Status == Fail {
			return true
		}
	}
	return false
}

// FromError is the check of something that either works, with a message, or
// fails with an error whose hint is the fix.
func FromError(name, why, message string, err error) Check {
	if err == nil {
		return Check{Name: name, Status: OK, Message: message, Why: why}
	}
	c := Check{Name: name, Status: Fail, Message: oneLine(err.Error()), Why: why}
	if h := errs.HintOf(err); h != "" {
		c.Fix = []string{h}
	}
	return c
}

// Func makes a provider of one thing that works or fails.
func Func(name, why string, f func(ctx context.Context) (message string, err error)) Provider {
	return func(ctx context.Context) []Check {
		msg, err := f(ctx)
		return []Check{FromError(name, why, msg, err)}
	}
}

// Config tells of the settings: err is what reading them gave.
func Config(path string, err error) Provider {
	return func(context.Context) []Check {
		const why = "a setting that is not understood is not used"
		if err == nil {
			return []Check{{Name: "config", Status: OK, Message: path, Why: why}}
		}
		var out []Check
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if line = oneLine(line); line != "" {
				out = append(out, Check{Name: "config", Status: Fail, Message: line, Why: why, Fix: []string{"banger config edit"}})
			}
		}
		return out
	}
}

// Daemon tells whether bangerd runs and fits this program: version is its
// version and err why it could not be asked.
func Daemon(own string, ask func(ctx context.Context) (version string, err error)) Provider {
	return func(ctx context.Context) []Check {
		const why = "the daemon does the work; another version may not know every command"
		v, err := ask(ctx)
		switch {
		case err != nil:
			c := FromError("daemon", why, "", err)
			if len(c.Fix) == 0 {
				c.Fix = []string{"banger daemon start", "banger daemon status"}
			}
			return []Check{c}
		case v != own:
			return []Check{{Name: "daemon", Status: Warn, Why: why, Fix: []string{"banger daemon stop   # VMs run on; the next command starts the new one"},
				Message: fmt.Sprintf("bangerd is version %s, this program %s", v, own)}}
		}
		return []Check{{Name: "daemon", Status: OK, Message: "running, version " + v, Why: why}}
	}
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
}
