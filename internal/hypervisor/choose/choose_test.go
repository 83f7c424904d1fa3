package choose

import (
	"context"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// driver is one that is only asked what it can do.
type driver struct {
	hypervisor.Driver
	name string
	acc  hypervisor.Accelerator
	err  error
}

func (d driver) Name() string { return d.name }

func (d driver) Probe(context.Context) (hypervisor.Host, error) {
	if d.err != nil {
		return hypervisor.Host{}, d.err
	}
	h := hypervisor.Host{Driver: d.name, Version: "1.2.3", Accelerator: d.acc}
	if d.acc != hypervisor.KVM {
		h.WhyNotKVM = "no flag"
	}
	return h, nil
}

func TestChoose(t *testing.T) {
	missing := errs.New(errs.Unsupported, "missing", "not installed").WithHint("apt-get install it")
	fc := func(err error) driver { return driver{name: "firecracker", acc: hypervisor.KVM, err: err} }
	qemu := func(acc hypervisor.Accelerator, err error) driver { return driver{name: "qemu", acc: acc, err: err} }
	for _, c := range []struct {
		name    string
		want    string
		drivers []hypervisor.Driver
		picked  string
		acc     hypervisor.Accelerator
		code    string
	}{
		{"both", "auto", []hypervisor.Driver{fc(nil), qemu(hypervisor.KVM, nil)}, "firecracker", hypervisor.KVM, ""},
		{"no firecracker", "", []hypervisor.Driver{fc(missing), qemu(hypervisor.KVM, nil)}, "qemu", hypervisor.KVM, ""},
		{"no kvm", "auto", []hypervisor.Driver{fc(missing), qemu(hypervisor.Emulation, nil)}, "qemu", hypervisor.Emulation, ""},
		{"kvm before order", "auto", []hypervisor.Driver{driver{name: "slow", acc: hypervisor.Emulation}, qemu(hypervisor.KVM, nil)}, "qemu", hypervisor.KVM, ""},
		{"named", "qemu", []hypervisor.Driver{fc(nil), qemu(hypervisor.Emulation, nil)}, "qemu", hypervisor.Emulation, ""},
		{"named and missing", "firecracker", []hypervisor.Driver{fc(missing), qemu(hypervisor.KVM, nil)}, "", "", "missing"},
		{"unknown", "xen", []hypervisor.Driver{fc(nil), qemu(hypervisor.KVM, nil)}, "", "", "hypervisor_unknown"},
		{"nothing", "auto", []hypervisor.Driver{fc(missing), qemu("", missing)}, "", "", "missing"},
		{"none at all", "auto", nil, "", "", "no_hypervisor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Choose(t.Context(), c.want, c.drivers)
			if c.code != "" {
				if errs.CodeOf(err) != c.code || errs.HintOf(err) == "" {
					t.Errorf("got %v (code %s, hint %q), want code %s", err, errs.CodeOf(err), errs.HintOf(err), c.code)
				}
			} else if err != nil || got.Driver.Name() != c.picked || got.Host.Accelerator != c.acc {
				t.Errorf("picked %+v, %v; want %s with %s", got.Host, err, c.picked, c.acc)
			}
			if len(got.Lines) != len(c.drivers) {
				t.Errorf("%d lines for %d drivers", len(got.Lines), len(c.drivers))
			}
			for _, l := range got.Lines {
				if l.Why == "" || strings.Contains(l.Why, "\n") {
					t.Errorf("line %+v", l)
				}
			}
		})
	}
}

func TestEmulationSaysWhy(t *testing.T) {
	got, err := Choose(t.Context(), Auto, []hypervisor.Driver{driver{name: "qemu", acc: hypervisor.Emulation}})
	if err != nil || got.Lines[0].Why != "qemu 1.2.3 with software emulation: no flag" {
		t.Errorf("got %+v, %v", got.Lines, err)
	}
}
