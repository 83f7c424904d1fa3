package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/daemon"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
	"github.com/banger-dev/banger/internal/launch"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/proc"
	"github.com/banger-dev/banger/internal/shim"
)

// The test binary is also bangerd and the small processes beside VMs: what is
// tested are real processes that are really killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "shim":
			os.Exit(shim.Main())
		case launch.Verb:
			os.Exit(launch.Main())
		case "hosted":
			os.Exit(hosted.Main())
		case "serve":
			os.Exit(serve())
		}
	}
	os.Exit(m.Run())
}

func serve() int {
	unix.Umask(0o077)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	layout, err := paths.FromEnv(os.Geteuid(), os.Getenv)
	if err == nil {
		var self string
		if self, err = os.Executable(); err == nil {
			var d *daemon.Daemon
			d, err = daemon.Open(context.Background(), daemon.Options{
				Layout: layout, Getenv: os.Getenv, Program: self, Rebuild: os.Getenv("TEST_REBUILD") != "", Failpoint: os.Getenv(daemon.EnvFailpoint),
			})
			if err == nil {
				err = d.Run(ctx)
			}
		}
	}
	if errors.Is(err, daemon.ErrRunning) {
		fmt.Println("another one is there")
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

// house is one daemon's world below one directory.
type house struct {
	t       *testing.T
	home    string
	layout  paths.Layout
	program string
	daemon  *exec.Cmd
	ended   chan struct{}
	env     []string // of every daemon
	spec    *bangerv1.Spec
	out     bytes.Buffer
	client  *apiclient.Client
}

func newHouse(t *testing.T) *house {
	t.Helper()
	home, err := os.MkdirTemp("", "bgr") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, home: home, program: self, spec: &bangerv1.Spec{Network: "none", Memory: 256 << 20, Disk: 64 << 20}}
	h.layout, err = paths.FromEnv(os.Geteuid(), func(k string) string {
		if k == paths.EnvHome {
			return home
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	h.write("config/config.toml", "hypervisor = \"hosted\"\nlog_level = \"debug\"\n")
	t.Cleanup(h.tearDown)
	return h
}

func (h *house) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) tearDown() {
	h.kill()
	for _, p := range h.processes() {
		proc.Kill(context.Background(), p.Identity)
	}
	if h.t.Failed() {
		log, _ := os.ReadFile(h.layout.DaemonLog())
		h.t.Logf("daemon's log:\n%s\n%s", tailOf(log, 6000), h.out.String())
	}
	os.RemoveAll(h.home)
}

func tailOf(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// processes are those beside VMs of this house.
func (h *house) processes() []proc.Found {
	h.t.Helper()
	found, err := proc.Find(context.Background(), h.home)
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}

func (h *house) command(env ...string) *exec.Cmd {
	cmd := exec.Command(h.program, "serve")
	cmd.Env = append(os.Environ(), append(append([]string{paths.EnvHome + "=" + h.home}, h.env...), env...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// start starts a daemon and waits until it answers.
func (h *house) start(env ...string) {
	h.t.Helper()
	h.out.Reset()
	h.daemon = h.command(env...)
	h.daemon.Stdout, h.daemon.Stderr = &h.out, &h.out
	if err := h.daemon.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), h.daemon
	h.ended = ended
	go func() { cmd.Wait(); close(ended) }()
	if h.client != nil {
		h.client.Close()
	}
	h.client = apiclient.New(apiclient.Options{Socket: h.layout.Socket()})
	limit := time.Now().Add(20 * time.Second)
	for {
		_, err := h.client.Reconnect(context.Background())
		if err == nil {
			return
		}
		select {
		case <-ended:
			if len(env) > 0 {
				return // a failpoint during reconciling
			}
			h.t.Fatalf("the daemon ended: %s", h.out.String())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(limit) {
			h.t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// fails runs a daemon that is expected to end by itself.
func (h *house) fails() (string, error) {
	h.t.Helper()
	cmd := h.command()
	stop := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer stop.Stop()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// kill is kill -9.
func (h *house) kill() {
	if h.daemon != nil && h.daemon.Process != nil {
		h.daemon.Process.Kill()
		<-h.ended
	}
}

// term asks the daemon to end and waits.
func (h *house) term() {
	h.t.Helper()
	h.daemon.Process.Signal(syscall.SIGTERM)
	h.awaitEnd()
}

func (h *house) awaitEnd() {
	h.t.Helper()
	select {
	case <-h.ended:
	case <-time.After(20 * time.Second):
		h.t.Fatal("the daemon does not end")
	}
}

type createOpt func(*bangerv1.CreateRequest)

func cold(r *bangerv1.CreateRequest)      { r.Cold = true }
func noStart(r *bangerv1.CreateRequest)   { r.NoStart = true }
func ephemeral(r *bangerv1.CreateRequest) { r.Ephemeral = true }
func bootArg(a string) createOpt {
	return func(r *bangerv1.CreateRequest) { r.Spec.BootArgs = append(r.Spec.BootArgs, a) }
}
func waitFor(d time.Duration) createOpt {
	return func(r *bangerv1.CreateRequest) { r.WaitTimeout = pbDuration(d) }
}

// create makes a VM as the CLI does.
func (h *house) create(ctx context.Context, name string, opts ...createOpt) (*bangerv1.VM, error) {
	req := &bangerv1.CreateRequest{Name: name, Spec: proto.CloneOf(h.spec)}
	for _, o := range opts {
		o(req)
	}
	s, err := h.client.VMs.Create(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, apiclient.Translate(err)
	}
	return lastVM(s)
}

func lastVM(s *connect.ServerStreamForClient[bangerv1.OpEvent]) (*bangerv1.VM, error) {
	defer s.Close()
	var v *bangerv1.VM
	for s.Receive() {
		if s.Msg().GetVm() != nil {
			v = s.Msg().GetVm()
		}
	}
	if err := s.Err(); err != nil {
		return v, apiclient.Translate(err)
	}
	if v == nil {
		return nil, io.ErrUnexpectedEOF
	}
	return v, nil
}

func (h *house) mustCreate(name string, opts ...createOpt) *bangerv1.VM {
	h.t.Helper()
	v, err := h.create(h.t.Context(), name, opts...)
	if err != nil {
		h.t.Fatalf("create %s: %v", name, err)
	}
	return v
}

func (h *house) startVM(ctx context.Context, name string) (*bangerv1.VM, error) {
	s, err := h.client.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartRequest{Vm: name}))
	if err != nil {
		return nil, apiclient.Translate(err)
	}
	return lastVM(s)
}

func (h *house) stopVM(ctx context.Context, name string, limit time.Duration) (*bangerv1.VM, error) {
	s, err := h.client.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopRequest{Vm: name, Timeout: pbDuration(limit)}))
	if err != nil {
		return nil, apiclient.Translate(err)
	}
	return lastVM(s)
}

func (h *house) deleteVM(ctx context.Context, name string, force bool) error {
	_, err := h.client.VMs.Delete(ctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: name, Force: force}))
	return apiclient.Translate(err)
}

func (h *house) get(name string) (*bangerv1.VM, error) {
	r, err := h.client.VMs.Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Vm: name}))
	if err != nil {
		return nil, apiclient.Translate(err)
	}
	return r.Msg, nil
}

func (h *house) list() []*bangerv1.VM {
	h.t.Helper()
	r, err := h.client.VMs.List(context.Background(), connect.NewRequest(&bangerv1.ListRequest{All: true}))
	if err != nil {
		h.t.Fatal(err)
	}
	return r.Msg.GetVms()
}

// until waits for something to come true.
func (h *house) until(what string, f func() bool) {
	h.t.Helper()
	for limit := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(limit) {
			h.t.Fatalf("never: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// nothingLeft fails unless no process, directory or record of any VM is there.
func (h *house) nothingLeft() {
	h.t.Helper()
	h.until("every VM is gone", func() bool { return len(h.list()) == 0 })
	h.noStrays()
}

// noStrays fails when a process or directory is there without a VM.
func (h *house) noStrays() {
	h.t.Helper()
	known := map[string]bool{}
	for _, v := range h.list() {
		known[v.GetId()] = true
	}
	for _, p := range h.processes() {
		if !known[p.VM] {
			h.t.Errorf("process %d of VM %s is left: %q", p.Identity.PID, p.VM, p.Args)
		}
	}
	for _, dir := range []string{filepath.Dir(h.layout.VMDir("x")), filepath.Dir(h.layout.VMRun("x"))} {
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Fatal(err)
		}
		for _, d := range list {
			if !known[d.Name()] {
				h.t.Errorf("%s is left", filepath.Join(dir, d.Name()))
			}
		}
	}
	list, _ := os.ReadDir(h.layout.Templates())
	for _, d := range list {
		if strings.HasPrefix(d.Name(), ".new-") {
			h.t.Errorf("unfinished template %s is left", d.Name())
		}
	}
}
