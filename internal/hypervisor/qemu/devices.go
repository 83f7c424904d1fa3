package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor/qemu/qmp"
)

// loadPoll is how often the end of loading a state is asked for; it takes
// some 10 ms.
const loadPoll = 2 * time.Millisecond

// SaveDevices writes the devices' state to path; see hypervisor.Saver.
func (m *machine) SaveDevices(ctx context.Context, path string) error {
	const what = "save the devices of"
	c, err := m.control.get(ctx)
	if err != nil {
		return m.failed(err, what)
	}
	if err := mustBePaused(ctx, c); err != nil {
		return m.failed(err, what)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return cannot(err, "save_devices", "%s machine %s", what, m.ref.ID)
	}
	defer os.Remove(tmp)
	defer f.Close()
	if err := saveTo(ctx, c, f); err != nil {
		return m.failed(err, what)
	}
	if err := errors.Join(f.Sync(), os.Rename(tmp, path)); err != nil {
		return cannot(err, "save_devices", "%s machine %s", what, m.ref.ID)
	}
	return nil
}

// saveTo has QEMU write its devices' state into an open file.
func saveTo(ctx context.Context, c *qmp.Conn, f *os.File) error {
	set, err := passFile(ctx, c, f)
	if err != nil {
		return err
	}
	// live=false: the disks stay usable, the machine goes on afterwards.
	err = c.Execute(ctx, "xen-save-devices-state", map[string]any{"filename": fdset(set), "live": false}, nil)
	return errors.Join(err, dropFile(ctx, c, set))
}

// passFile adds an open file to a set that QEMU opens by fdset's name.
func passFile(ctx context.Context, c *qmp.Conn, f *os.File) (set int, err error) {
	var r struct {
		Set int `json:"fdset-id"`
	}
	err = c.ExecuteFile(ctx, "add-fd", nil, f, &r)
	return r.Set, err
}

func dropFile(ctx context.Context, c *qmp.Conn, set int) error {
	// Also after a cancelled command: the set is QEMU's until it is told.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandLimit)
	defer cancel()
	return c.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)
}

func fdset(set int) string { return fmt.Sprintf("/dev/fdset/%d", set) }

func mustBePaused(ctx context.Context, c *qmp.Conn) error {
	var s struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	if err := c.Execute(ctx, "query-status", nil, &s); err != nil {
		return err
	}
	if s.Running {
		return errs.New(errs.Conflict, "machine_not_paused", "it is not paused")
	}
	return nil
}

// load has a QEMU that waits for it load a devices' state.
func load(ctx context.Context, c *qmp.Conn, path string, v version) error {
	f, err := os.Open(path)
	if err != nil {
		return cannot(err, "load_devices", "open the saved state")
	}
	defer f.Close()
	const name = "devices"
	uri := "fd:" + name
	if v.has(migrateFile) {
		set, err := passFile(ctx, c, f)
		if err != nil {
			return err
		}
		defer dropFile(ctx, c, set) //nolint:errcheck // a descriptor kept is no failure of the load
		uri = "file:" + fdset(set)
	} else if err := c.ExecuteFile(ctx, "getfd", map[string]any{"fdname": name}, f, nil); err != nil {
		return err
	}
	if err := c.Execute(ctx, "migrate-incoming", map[string]any{"uri": uri}, nil); err != nil {
		return err
	}
	return awaitLoad(ctx, c)
}

func awaitLoad(ctx context.Context, c *qmp.Conn) error {
	tick := time.NewTicker(loadPoll)
	defer tick.Stop()
	for {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := c.Execute(ctx, "query-migrate", nil, &s); err != nil {
			return err
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the saved state was refused: %s", clean(s.Error))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
