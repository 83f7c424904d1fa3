package hosted

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// system is the guest's machine as far as a plain process has one: it keeps
// what it is told and changes nothing of the host.
type system struct {
	state  string // file that a save copies
	cancel context.CancelFunc
	start  time.Time
	deaf   bool

	mu   sync.Mutex
	self self
}

// self is a guest's own state, as a snapshot carries it.
type self struct {
	Token    []byte `json:"token"`
	Hostname string `json:"hostname"`
	State    string `json:"state"`
}

// Seed is the initrd of a hosted machine: what it is told before anything else.
func Seed(token []byte) ([]byte, error) { return json.Marshal(self{Token: token}) }

var _ agent.System = (*system)(nil)

func newSystem(c config, cancel context.CancelFunc) (*system, error) {
	from := c.Devices
	if from == "" {
		from = c.Initrd
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	s := &system{state: c.State, cancel: cancel, start: time.Now()}
	if err := json.Unmarshal(b, &s.self); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	if s.self.State == "" {
		s.self.State = "early"
	}
	return s, s.keep()
}

// keep writes the state down for a save.
func (s *system) keep() error {
	b, err := json.Marshal(s.self)
	if err != nil {
		return err
	}
	return os.WriteFile(s.state, b, 0o600)
}

// Info says who the guest is.
func (s *system) Info() wire.HelloReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.HelloReply{
		Version: wire.Version, BootID: "hosted", Agent: "hosted", State: s.self.State, HasInit: true, Kernel: "hosted",
		UptimeMS: uint64(time.Since(s.start).Milliseconds()), ClockUnix: time.Now().UnixNano(), Clock: "hosted",
	}
}

// Token is the present token.
func (s *system) Token() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.self.Token
}

// Identity takes the token and the name.
func (s *system) Identity(_ context.Context, id wire.Identity) (wire.IdentityReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(id.Token) > 0 {
		s.self.Token = append([]byte(nil), id.Token...)
	}
	s.self.Hostname = id.Hostname
	return wire.IdentityReply{}, s.keep()
}

// Handover notes that the init would run now.
func (s *system) Handover(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self.State = "init"
	return s.keep()
}

// Prepare has nothing to quiet.
func (s *system) Prepare(context.Context, wire.PrepareRequest) (wire.PrepareReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return wire.PrepareReply{Clock: "hosted"}, s.keep()
}

// Stats says how long it has run.
func (s *system) Stats(context.Context) (wire.Stats, error) {
	return wire.Stats{UptimeMS: uint64(time.Since(s.start).Milliseconds()), MemTotal: 1 << 30, MemAvailable: 1 << 29, Processes: 1}, nil
}

// Clock leaves the host's clock alone.
func (s *system) Clock(context.Context, wire.ClockRequest) error { return nil }

// Grow has no disks.
func (s *system) Grow(context.Context, wire.GrowRequest) error { return nil }

// Wait has always settled.
func (s *system) Wait(context.Context, wire.WaitRequest) (wire.WaitReply, error) {
	return wire.WaitReply{State: "running"}, nil
}

// stopDelay lets the answer to Shutdown reach the host.
const stopDelay = 20 * time.Millisecond

// Shutdown ends the process a moment later.
func (s *system) Shutdown(context.Context, wire.ShutdownRequest) error {
	if !s.deaf {
		time.AfterFunc(stopDelay, s.cancel)
	}
	return nil
}

// Sync has nothing to write.
func (s *system) Sync(context.Context) error { return nil }

// ServeSSH has no ssh server.
func (s *system) ServeSSH(_ context.Context, conn net.Conn) { conn.Close() }
