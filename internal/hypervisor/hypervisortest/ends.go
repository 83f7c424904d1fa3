package hypervisortest

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

// ends: each way a machine can end is noticed at once and told apart.
func (s Subject) ends(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(t *testing.T, m hypervisor.Machine, p *Port)
		cause hypervisor.Cause
		limit time.Duration
	}{
		{"crash", func(t *testing.T, m hypervisor.Machine, _ *Port) {
			signal(t, m, syscall.SIGSEGV)
		}, hypervisor.CauseCrash, 2 * time.Second},
		{"killed from outside", func(t *testing.T, m hypervisor.Machine, _ *Port) {
			signal(t, m, syscall.SIGKILL)
		}, hypervisor.CauseHost, 2 * time.Second},
		{"guest panic", func(_ *testing.T, _ hypervisor.Machine, p *Port) {
			p.Try(time.Second, "panic") //nolint:errcheck // it cannot answer
		}, hypervisor.CauseReset, 30 * time.Second},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			m := Start(t, s.New(t), s.Spec(t, "ends"))
			port := Dial(t, m.Ref().Endpoint)
			port.Expect("ping x", "pong x")
			began := time.Now()
			c.end(t, m, port)
			x := awaitEnd(t, m, c.limit)
			t.Logf("noticed after %v: %s", time.Since(began).Round(time.Millisecond), x.Reason)
			if x.Cause != c.cause || !x.Known {
				t.Errorf("exit %+v, want cause %q", x, c.cause)
			}
			if p, ok := hypervisor.As[hypervisor.Pauser](m); ok {
				if err := p.Pause(t.Context()); !errors.Is(err, hypervisor.ErrGone) {
					t.Errorf("pause of an ended machine: %v", err)
				}
			}
			if _, err := m.Usage(); !errors.Is(err, hypervisor.ErrGone) {
				t.Errorf("usage of an ended machine: %v", err)
			}
		})
	}
}

func signal(t *testing.T, m hypervisor.Machine, sig syscall.Signal) {
	t.Helper()
	p, err := proc.Open(m.Ref().Process)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}
