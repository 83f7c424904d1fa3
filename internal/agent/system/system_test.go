package system

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// pid1 is PID 1 as banger's own; it records what it is asked.
type pid1 struct {
	mu     sync.Mutex
	handed bool
	stops  []bool
	err    error
}

func (p *pid1) Handover() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handed = p.err == nil
	return p.err
}

func (p *pid1) Handed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handed
}

func (p *pid1) Stop(reboot bool) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stops = append(p.stops, reboot)
	return true, nil
}

func (p *pid1) asked() []bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.stops)
}

func system(t *testing.T, p *pid1, init string) *System {
	t.Helper()
	return &System{
		pid1: p, life: t.Context(), token: []byte("token"), version: func() string { return "v" },
		handoff: boot.Handoff{Init: init, Disks: map[string]string{"image": "vda"}},
	}
}

func TestStateFollowsTheHandover(t *testing.T) {
	p := &pid1{}
	s := system(t, p, "/sbin/init")
	if i := s.Info(); i.State != "early" || !i.HasInit || i.Agent != "v" || i.Version != wire.Version || i.Kernel == "" || i.UptimeMS == 0 {
		t.Errorf("%+v", i)
	}
	if _, err := s.Wait(t.Context(), wire.WaitRequest{For: "system"}); !errs.Is(err, errs.Conflict) {
		t.Errorf("waiting for an init that nobody started: %v", err)
	}
	p.err = errors.New("no such file")
	if err := s.Handover(t.Context()); err == nil || s.Info().State != "early" {
		t.Errorf("failed handover: %v", err)
	}
	p.err = nil
	if err := s.Handover(t.Context()); err != nil || s.Info().State != "init" {
		t.Errorf("%v, %s", err, s.Info().State)
	}
	alone := system(t, &pid1{}, "")
	reply, err := alone.Wait(t.Context(), wire.WaitRequest{For: "system"})
	if err != nil || reply.State != "alone" || alone.Info().State != "alone" || alone.Info().HasInit {
		t.Errorf("%+v, %v", reply, err)
	}
	if _, err := alone.Wait(t.Context(), wire.WaitRequest{For: "rain"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestShutdownAnswersFirstAndAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pid1{}
		life, end := context.WithCancel(t.Context())
		s := system(t, p, "")
		s.life = life
		start := time.Now()
		for range 2 {
			if err := s.Shutdown(t.Context(), wire.ShutdownRequest{Reboot: true, TimeoutMS: 60000}); err != nil {
				t.Fatal(err)
			}
		}
		if asked := p.asked(); len(asked) != 0 || time.Since(start) != 0 {
			t.Error("acted before it answered")
		}
		time.Sleep(headStart)
		synctest.Wait()
		if asked := p.asked(); !slices.Equal(asked, []bool{true}) {
			t.Errorf("asked %v", asked)
		}
		time.Sleep(askAgain)
		synctest.Wait()
		if asked := p.asked(); len(asked) != 2 {
			t.Errorf("asked %v after a while", asked)
		}
		end() // before the backstop, which would stop this machine
		synctest.Wait()
	})
}

func TestGrowKnowsItsDisks(t *testing.T) {
	s := system(t, &pid1{}, "")
	for _, serial := range []string{"image", "work", "../vda"} {
		if err := s.Grow(t.Context(), wire.GrowRequest{Disks: []string{serial}}); !strings.Contains(err.Error(), "no") {
			t.Errorf("%s: %v", serial, err)
		}
	}
	if err := s.Clock(t.Context(), wire.ClockRequest{UnixNS: -1}); !errs.Is(err, errs.Invalid) {
		t.Errorf("clock: %v", err)
	}
}

func TestStatsParsers(t *testing.T) {
	var st wire.Stats
	parseMeminfo("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable: 500 kB\nOdd\n", &st)
	parseCPU("cpu  10 1 20 300 4 5 6 0 0 0\ncpu0 1\n", &st)
	parseNetDev("Inter-|\n face |bytes\n lo: 9 0 0 0 0 0 0 0 9 0\n eth0: 100 1 0 0 0 0 0 0 200 2 0\nenp1: 1 0 0 0 0 0 0 0 2 0\nveth1: 7 0 0 0 0 0 0 0 7\n", &st)
	want := wire.Stats{
		MemTotal: 1000 << 10, MemAvailable: 500 << 10,
		CPUUserMS: 110, CPUSystemMS: 310, IdleMS: 3040, NetRX: 101, NetTX: 202,
	}
	if st != want {
		t.Errorf("%+v", st)
	}
	var none wire.Stats
	parseCPU("cpu x", &none)
	parseNetDev("eth0: 1", &none)
	if none != (wire.Stats{}) {
		t.Errorf("%+v", none)
	}
	if got, err := system(t, &pid1{}, "").Stats(t.Context()); err != nil || got.MemTotal == 0 || got.Processes == 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestFailedUnitsAreBounded(t *testing.T) {
	got := failedUnits("● ssh.service loaded failed failed OpenBSD\nx.mount loaded failed failed\n\n" + strings.Repeat("u", 300) + " loaded\n")
	if !slices.Equal(got, []string{"ssh.service", "x.mount"}) {
		t.Errorf("%q", got)
	}
	if n := len(failedUnits(strings.Repeat("a.service loaded\n", 1000))); n != maxFailed {
		t.Errorf("%d units", n)
	}
}

func TestDockerWantedWhereItIsEnabled(t *testing.T) {
	units := t.TempDir()
	if dockerWanted(units) {
		t.Error("wanted where it is not enabled")
	}
	if err := os.Mkdir(filepath.Join(units, "sockets.target.wants"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/system/docker.socket", filepath.Join(units, "sockets.target.wants/docker.socket")); err != nil {
		t.Fatal(err)
	}
	if !dockerWanted(units) {
		t.Error("not wanted where its socket is enabled")
	}
}

func TestPingDocker(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := pingDocker(t.Context(), socket); err == nil {
		t.Error("nobody answered, and yet")
	}
	for answer, ok := range map[string]bool{
		"HTTP/1.0 200 OK\r\n\r\nOK": true, "HTTP/1.0 503 starting\r\n\r\n": false, "": false,
		strings.Repeat("x", 4096): false,
	} {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 256))
			_, _ = conn.Write([]byte(answer))
		}()
		if err := pingDocker(t.Context(), socket); (err == nil) != ok {
			t.Errorf("%.20q: %v", answer, err)
		}
		<-done
		l.Close()
	}
}

func TestRehearsalIsAValidIdentity(t *testing.T) {
	id := rehearsal([]byte(strings.Repeat("t", 32)), wire.PrepareRequest{})
	mac, err := net.ParseMAC(id.MAC)
	if err != nil || mac[0]&3 != 2 {
		t.Errorf("mac %s, %v", id.MAC, err)
	}
	if err := rehearseTCP(t.Context()); err != nil {
		t.Error(err)
	}
}
