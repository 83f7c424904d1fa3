package kvm

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func flags(f ...string) func() ([]string, error) {
	return func() ([]string, error) { return f, nil }
}

func TestProbeProves(t *testing.T) {
	open := func(err error) func() error { return func() error { return err } }
	run := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	for _, c := range []struct {
		name string
		in   Inputs
		why  string // "" for usable
	}{
		{"intel", Inputs{open(nil), flags("fpu", "vmx"), run(nil)}, ""},
		{"amd", Inputs{open(nil), flags("svm"), run(nil)}, ""},
		{"no device", Inputs{open(unix.ENOENT), flags("vmx"), run(nil)}, "does not exist"},
		{"not allowed", Inputs{open(unix.EACCES), flags("vmx"), run(nil)}, "usermod -aG kvm"},
		{"no such unit", Inputs{open(unix.ENODEV), flags("vmx"), run(nil)}, "cannot be opened"},
		{"opens in a VM without nesting", Inputs{open(nil), flags("fpu", "hypervisor"), run(nil)}, "without nested virtualization"},
		{"switched off in firmware", Inputs{open(nil), flags("fpu"), run(nil)}, "firmware"},
		{"flag but no guest", Inputs{open(nil), flags("svm"), run(errors.New("it did not finish in time"))}, "did not finish in time"},
		{"flags unreadable", Inputs{open(nil), func() ([]string, error) { return nil, os.ErrPermission }, run(nil)}, "cannot be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Probe(t.Context(), c.in)
			if r.Usable != (c.why == "") || !strings.Contains(r.Why, c.why) || strings.Contains(r.Why, "\n") {
				t.Errorf("got %+v, want why with %q", r, c.why)
			}
			if r.Usable && r.Why != "" {
				t.Errorf("usable, and yet %q", r.Why)
			}
		})
	}
}

// A host whose /dev/kvm opens but which has no svm or vmx flag is refused,
// whatever its KVM makes of the test guest.
func TestOpenableDeviceWithoutFlagIsNotUsable(t *testing.T) {
	r := Probe(t.Context(), Inputs{Open: func() error { return nil }, CPUFlags: flags("hypervisor")})
	if r.Usable || !strings.HasPrefix(r.Why, "/dev/kvm opens, but ") {
		t.Errorf("got %+v", r)
	}
}

// This host, whatever it is: an answer in time that agrees with its CPU.
func TestThisHost(t *testing.T) {
	began := time.Now()
	r := Probe(t.Context(), Inputs{})
	if d := time.Since(began); d > limit+time.Second {
		t.Errorf("took %v", d)
	}
	if r.Usable == (r.Why != "") {
		t.Errorf("got %+v", r)
	}
	f, err := hostFlags()
	if err != nil {
		t.Fatal(err)
	}
	if r.Usable && !has(f, "svm") && !has(f, "vmx") {
		t.Errorf("usable on a CPU without the flag")
	}
	t.Logf("%+v", r)
}

// The test guest itself, where the device opens: it ends in time either way.
func TestGuestEndsInTime(t *testing.T) {
	if err := openDevice(); err != nil {
		r := Probe(t.Context(), Inputs{})
		if r.Usable {
			t.Errorf("usable without a device")
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	err := runGuest(ctx)
	t.Logf("guest: %v in %v", err, time.Since(began))
	if d := time.Since(began); d > limit+time.Second {
		t.Errorf("took %v", d)
	}
}

func TestParseFlags(t *testing.T) {
	got, err := parseFlags(strings.NewReader("processor\t: 0\nflags\t\t: fpu svm\n\nflags\t\t: other\n"))
	if err != nil || strings.Join(got, ",") != "fpu,svm" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseFlags(strings.NewReader("processor : 0\n")); err == nil {
		t.Error("no flags, and no error")
	}
}
