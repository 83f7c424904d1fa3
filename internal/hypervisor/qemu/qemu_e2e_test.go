//go:build e2e

package qemu_test

import (
	"os"
	"testing"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest"
	"github.com/banger-dev/banger/internal/hypervisor/hypervisortest/guestimage"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/launch"
)

// subject is this driver with a QEMU ("" for the host's).
func subject(t *testing.T, binary string) hypervisortest.Subject {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	img := guestimage.New(t, t.TempDir())
	return hypervisortest.Subject{
		New: func(testing.TB) hypervisor.Driver {
			return qemu.New(qemu.Options{Binary: binary, Launcher: []string{exe, launch.Verb}})
		},
		Kernel: img.Kernel, Initrd: img.Initrd, HZ: img.HZ,
	}
}

func TestSuiteHostQEMU(t *testing.T) { hypervisortest.Run(t, subject(t, "")) }
