package qemu_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/hypervisor/qemu"
	"github.com/banger-dev/banger/internal/launch"
)

// saveVerb makes the test binary a daemon that came later: see saveElsewhere.
const saveVerb = "save-elsewhere"

// TestMain doubles as the launcher and as another daemon.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case launch.Verb:
			os.Exit(launch.Main())
		case saveVerb:
			if err := saveElsewhere(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// saveElsewhere adopts the machine whose Ref is on standard input and saves it
// to dir/ram and dir/devices.
func saveElsewhere(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var ref hypervisor.Ref
	if err := json.NewDecoder(os.Stdin).Decode(&ref); err != nil {
		return err
	}
	m, err := qemu.New(qemu.Options{}).Adopt(ctx, ref)
	if err != nil {
		return err
	}
	defer m.Close()
	pauser, ok1 := hypervisor.As[hypervisor.Pauser](m)
	saver, ok2 := hypervisor.As[hypervisor.Saver](m)
	if !ok1 || !ok2 {
		return fmt.Errorf("%T lacks a capability", m)
	}
	for _, step := range []func() error{
		func() error { return pauser.Pause(ctx) },
		func() error { return saver.SaveDevices(ctx, dir+"/devices") },
		func() error { return saver.SaveRAM(ctx, dir+"/ram") },
		func() error { return pauser.Resume(ctx) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	_, err = m.Usage()
	return err
}
