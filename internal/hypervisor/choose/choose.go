// Package choose picks the hypervisor by which this host runs VMs and keeps
// the reasons, for doctor and for the line that says what was picked. It
// starts nothing; what a host can do is each driver's own Probe.
package choose

import (
	"context"
	"fmt"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Auto is the setting that leaves the choice to the host.
const Auto = "auto"

// Line is what was found out about one driver.
type Line struct {
	Driver string
	Usable bool
	Host   hypervisor.Host // zero when not usable
	// Why is one line: what it would run with, or why it cannot be used.
	Why string
	Err error // why not, with its hint
}

// Choice is the driver to use, with what it found and all that was looked at.
type Choice struct {
	Driver hypervisor.Driver
	Host   hypervisor.Host
	Lines  []Line
}

// Choose probes drivers, given in order of preference, and picks: with want
// Auto the first that has KVM, or else the first that can run VMs at all;
// otherwise the one named. The Lines are filled in also when it fails.
func Choose(ctx context.Context, want string, drivers []hypervisor.Driver) (Choice, error) {
	if want == "" {
		want = Auto
	}
	var c Choice
	var names []string
	var named *Line
	for _, d := range drivers {
		line := look(ctx, d)
		c.Lines = append(c.Lines, line)
		names = append(names, d.Name())
		if d.Name() == want {
			named = &line
		}
		if !line.Usable || (want != Auto && want != d.Name()) {
			continue
		}
		better := line.Host.Accelerator == hypervisor.KVM && c.Host.Accelerator != hypervisor.KVM
		if c.Driver == nil || better {
			c.Driver, c.Host = d, line.Host
		}
	}
	if err := ctx.Err(); err != nil {
		return c, err
	}
	switch {
	case c.Driver != nil:
		return c, nil
	case want != Auto && named == nil:
		return c, errs.New(errs.Invalid, "hypervisor_unknown", "there is no hypervisor %q: have %s", want, strings.Join(append([]string{Auto}, names...), ", ")).
			WithHint("set hypervisor = %q in config.toml", Auto)
	case named != nil:
		return c, named.Err
	}
	for _, l := range c.Lines {
		if l.Err != nil && errs.HintOf(l.Err) != "" {
			return c, l.Err
		}
	}
	return c, errs.New(errs.Unsupported, "no_hypervisor", "no hypervisor can be used on this host").WithHint("run banger doctor")
}

func look(ctx context.Context, d hypervisor.Driver) Line {
	h, err := d.Probe(ctx)
	if err != nil {
		return Line{Driver: d.Name(), Why: err.Error(), Err: err}
	}
	why := fmt.Sprintf("%s %s with KVM", h.Driver, h.Version)
	if h.Accelerator != hypervisor.KVM {
		why = fmt.Sprintf("%s %s with software emulation: %s", h.Driver, h.Version, h.WhyNotKVM)
	}
	return Line{Driver: d.Name(), Usable: true, Host: h, Why: why}
}
