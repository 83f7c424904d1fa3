// Command bench measures banger beside its floors, in turns, in one run, and
// prints a table. It uses the built programs and real microVMs, a home of its
// own, and the data directory named by BANGER_DATA_DIR (images are not made
// anew). `make bench` runs it; docs/benchmarks.md keeps what it printed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/units"
)

func main() {
	runs := flag.Int("n", 15, "measurements of each figure")
	only := flag.String("only", "", "run only the figures whose name contains this")
	bin := flag.String("bin", "bin", "directory of the built programs")
	vms := flag.Int("vms", 200, "VMs for the list")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *runs, *only, *bin, *vms); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	ctx    context.Context
	n      int
	only   string
	bin    string
	home   string
	layout paths.Layout
	env    []string
	bare   *bare
	rows   []row
}

func run(ctx context.Context, n int, only, bin string, vms int) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	home, err := os.MkdirTemp("", "bb")
	if err != nil {
		return err
	}
	b := &bench{ctx: ctx, n: n, only: only, bin: bin, home: home}
	b.env = append(os.Environ(), paths.EnvHome+"="+home, "PATH="+bin+":"+os.Getenv("PATH"))
	b.layout, err = paths.FromEnv(os.Getuid(), func(k string) string {
		if k == paths.EnvHome {
			return home
		}
		return os.Getenv(k)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	fmt.Fprintln(os.Stderr, "bench: image, kernel and template")
	if _, err := b.banger("run", "--rm", "--", "true"); err != nil {
		return err
	}
	t, err := findTemplate(b.layout.Templates())
	if err != nil {
		return err
	}
	if b.bare, err = newBare(ctx, filepath.Join(home, "bare"), bin, b.layout, t.memory, 20*units.GiB); err != nil {
		return err
	}
	for _, f := range []func() error{b.cold, func() error { return b.warm(t) }, b.exec, b.copy, b.quick, func() error { return b.list(vms) }} {
		if err := f(); err != nil {
			return err
		}
	}
	host, _ := b.bare.driver.Probe(ctx)
	fmt.Printf("%s, %d CPUs, QEMU %s, %s; %d of each in turns\n\n", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), host.Version, host.Accelerator, n)
	table(os.Stdout, b.rows)
	return nil
}

func (b *bench) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "banger"), "vm", "delete", "--all", "--force", "-y")
	cmd.Env = b.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("delete: %w: %s", err, out)
	}
	stop := exec.CommandContext(ctx, filepath.Join(b.bin, "banger"), "daemon", "stop")
	stop.Env = b.env
	return errors.Join(err, stop.Run(), os.RemoveAll(b.home))
}

// banger runs the CLI and gives how long the whole process took.
func (b *bench) banger(args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.bin, "banger"), args...)
	cmd.Env = b.env
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return took, nil
}

// turns measures ours and the floor one after the other, n times, after one
// uncounted turn; a nil floor is left out.
func (b *bench) turns(r row, ours, floor func() (time.Duration, error), met func(ours, floor time.Duration) bool) error {
	if !strings.Contains(r.name, b.only) {
		return nil
	}
	fmt.Fprintln(os.Stderr, "bench:", r.name)
	for i := range b.n + 1 {
		o, err := ours()
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		var f time.Duration
		if floor != nil {
			if f, err = floor(); err != nil {
				return fmt.Errorf("%s: floor: %w", r.name, err)
			}
		}
		if i == 0 {
			continue
		}
		r.ours = append(r.ours, o)
		if floor != nil {
			r.floor = append(r.floor, f)
		}
	}
	r.met = met(r.ours.median(), r.floor.median())
	b.rows = append(b.rows, r)
	return nil
}

func (b *bench) cold() error {
	return b.turns(row{name: "vm run --rm --cold -- true", what: "bare QEMU to the agent's first answer", bar: "≤ 1.25 × floor"},
		func() (time.Duration, error) {
			return b.banger("vm", "run", "--rm", "--cold", "--wait", "agent", "--", "true")
		},
		func() (time.Duration, error) { return b.bare.cold(b.ctx) },
		func(o, f time.Duration) bool { return float64(o) <= 1.25*float64(f) })
}

func (b *bench) warm(t template) error {
	return b.turns(row{name: "vm run --rm -- true", what: "bare clone to the agent's first answer", bar: "≤ floor + 200 ms, < 600 ms"},
		func() (time.Duration, error) { return b.banger("vm", "run", "--rm", "--", "true") },
		func() (time.Duration, error) { return b.bare.clone(b.ctx, t) },
		func(o, f time.Duration) bool { return o <= f+200*time.Millisecond && o < 600*time.Millisecond })
}

// buildFloor compiles the least guest.
func (b *bench) buildFloor() (string, error) {
	out := filepath.Join(b.home, "floor")
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./test/bench/floor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, text)
	}
	return out, nil
}

func (b *bench) withFloor(f func(g *floorGuest) error) error {
	init, err := b.buildFloor()
	if err != nil {
		return err
	}
	g, err := b.bare.floorGuest(b.ctx, init)
	if err != nil {
		return err
	}
	if _, err := b.banger("vm", "create", "--name", "bench-vm", "--wait", "system"); err != nil {
		return errors.Join(err, g.end(b.ctx))
	}
	err = f(g)
	_, derr := b.banger("vm", "delete", "--force", "-y", "bench-vm")
	return errors.Join(err, g.end(b.ctx), derr)
}

func (b *bench) exec() error {
	return b.withFloor(func(g *floorGuest) error {
		return b.turns(row{name: "vm exec NAME -- true", what: "minimal agent: fork, exec, wait", bar: "≤ 2 × floor, < 80 ms"},
			func() (time.Duration, error) { return b.banger("vm", "exec", "bench-vm", "--", "true") }, g.exec,
			func(o, f time.Duration) bool { return o <= 2*f && o < 80*time.Millisecond })
	})
}

// copySize is what is copied each way.
const copySize = 64 * units.MiB

func (b *bench) copy() error {
	file := filepath.Join(b.home, "blob")
	if err := os.WriteFile(file, make([]byte, copySize), 0o600); err != nil {
		return err
	}
	return b.withFloor(func(g *floorGuest) error {
		kib := int(copySize / units.KiB)
		err := b.turns(row{name: "cp 64 MiB in", what: "64 MiB over the bare port", bar: "shown", met: true},
			func() (time.Duration, error) { return b.banger("cp", file, "bench-vm:/root/blob") },
			func() (time.Duration, error) { return g.move('r', kib) }, always)
		if err != nil {
			return err
		}
		return b.turns(row{name: "cp 64 MiB out", what: "64 MiB over the bare port", bar: "shown", met: true},
			func() (time.Duration, error) { return b.banger("cp", "bench-vm:/root/blob", file+".back") },
			func() (time.Duration, error) { return g.move('w', kib) }, always)
	})
}

func always(_, _ time.Duration) bool { return true }

// quick measures what must feel instant.
func (b *bench) quick() error {
	floor := func() (time.Duration, error) {
		start := time.Now()
		err := exec.CommandContext(b.ctx, "true").Run()
		return time.Since(start), err
	}
	if err := b.turns(row{name: "banger --help", what: "true", bar: "20 ms"},
		func() (time.Duration, error) { return b.banger("--help") }, floor,
		func(o, _ time.Duration) bool { return o <= 20*time.Millisecond }); err != nil {
		return err
	}
	return b.idle()
}

// idle looks at what the daemon holds in memory when it does nothing.
func (b *bench) idle() error {
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.bin, "banger"), "system", "info", "--json")
	cmd.Env = b.env
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("banger system info: %w", err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.PID))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				return err
			}
			fmt.Printf("daemon's resident memory: %s (bar: under 40M)\n", units.FormatSize(kib*units.KiB))
		}
	}
	return nil
}

func (b *bench) list(vms int) error {
	name := fmt.Sprintf("ps of %d VMs", vms)
	if !strings.Contains(name, b.only) {
		return nil
	}
	for i := range vms {
		if _, err := b.banger("vm", "create", "--no-start", "--name", fmt.Sprintf("bench-%03d", i)); err != nil {
			return err
		}
	}
	return b.turns(row{name: name, what: "banger --help", bar: "50 ms"},
		func() (time.Duration, error) { return b.banger("ps", "-a") },
		func() (time.Duration, error) { return b.banger("--help") },
		func(o, _ time.Duration) bool { return o <= 50*time.Millisecond })
}
