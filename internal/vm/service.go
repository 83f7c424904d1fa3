package vm

import (
	"context"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/event"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/paths"
)

// Options are what the service is told by its configuration.
type Options struct {
	Layout   paths.Layout
	Log      *slog.Logger
	Events   *event.Log
	Defaults Defaults
	// Host measures the host's sizes now; the service adds what its driver
	// found.
	Host func() HostSize
	// BootID is the host's boot.
	BootID string
	// BootTimeout bounds a boot to the agent where the driver has no
	// longer limit; StopTimeout bounds a guest's own orderly stop.
	BootTimeout, StopTimeout time.Duration
	// ParallelBoots bounds boots at the same time.
	ParallelBoots int
	// TemplateSpace is how many bytes of disk templates may take; the
	// least used go first. 0 is no limit.
	TemplateSpace int64
	// FirstUID is the first user that hypervisors run as; 0 means that
	// they run as the daemon does.
	FirstUID uint32
	// HandoverDelay is how long a VM that nobody waits on to settle stays
	// with the agent alone, so that a first quick command need not share
	// the machine with a booting init.
	HandoverDelay time.Duration
	// ReleaseGrace is how long an ephemeral VM waits for a command that
	// owns it; ReattachGrace for an owner that vanished.
	ReleaseGrace, ReattachGrace time.Duration
	// Failpoint, in tests, is called with "STEP.before" and "STEP.after".
	Failpoint func(point string)
}

func (o *Options) fill() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.BootTimeout, 90*time.Second)
	def(&o.StopTimeout, 30*time.Second)
	def(&o.ReleaseGrace, time.Minute)
	def(&o.ReattachGrace, 30*time.Second)
	if o.ParallelBoots <= 0 {
		o.ParallelBoots = 2
	}
	if o.Failpoint == nil {
		o.Failpoint = func(string) {}
	}
}

// Service makes, starts, finds, stops and unmakes VMs. Its methods may be
// called concurrently; each VM has one operation at a time.
type Service struct {
	Ports
	opt   Options
	log   *slog.Logger
	locks op.Locks
	boots chan struct{} // a place for each boot at the same time

	ctx    context.Context // ends with the service, not with a request
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.RWMutex
	vms   map[string]*entry // by id
	names map[string]string // name → id, reservations included
	uids  map[uint32]string // uid → id

	templates *templates
	wakeTimer chan struct{} // tells the janitor that a deadline changed
}

// New makes a service; ctx is the daemon's life. Nothing is touched before
// Reconcile is called.
func New(ctx context.Context, ports Ports, opt Options) *Service {
	opt.fill()
	s := &Service{
		Ports: ports, opt: opt, log: opt.Log,
		boots: make(chan struct{}, opt.ParallelBoots),
		vms:   map[string]*entry{}, names: map[string]string{}, uids: map[uint32]string{},
		wakeTimer: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.templates = newTemplates(s)
	return s
}

// Close ends the service's own work and lets go of every machine; VMs run on.
// It waits for what is under way to be given up.
func (s *Service) Close() {
	s.cancel()
	s.wg.Wait()
	for _, e := range s.entries() {
		e.release()
	}
}

// spawn runs f as work of the service's own.
func (s *Service) spawn(f func(ctx context.Context)) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f(s.ctx)
	}()
}

func (s *Service) entries() []*entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*entry, 0, len(s.vms))
	for _, e := range s.vms {
		out = append(out, e)
	}
	return out
}

// View is a VM as it is shown: its record with what is true now.
type View struct {
	Record
	State     State
	Operation string // what is going on now, or ""
	Dir       string
	PID       int
	DiskUsed  int64
	MemUsed   int64
}

// A list of many VMs is shown quickly: measuring a hypervisor's memory walks
// its page tables, so a recent measure will do, and what cannot be measured
// within the budget is shown as it was last.
const (
	usageFresh = 2 * time.Second
	listBudget = 25 * time.Millisecond
)

func (s *Service) view(e *entry) View { return s.viewBy(e, time.Time{}) }

// viewBy measures nothing after the deadline, if there is one.
func (s *Service) viewBy(e *entry, deadline time.Time) View {
	r, f := e.facts()
	verb, _ := s.locks.Current(r.ID)
	f.Doing = verb
	v := View{Record: r, State: StateOf(r, f), Operation: verb, Dir: s.opt.Layout.VMDir(r.ID)}
	v.DiskUsed = s.diskUsed(r.ID)
	if m := e.machine(); m != nil {
		v.PID = m.Ref().Process.PID
		v.MemUsed = e.privateMemory(m, deadline)
	}
	return v
}

// state is the state alone, without asking the host for sizes.
func (s *Service) state(e *entry) State {
	r, f := e.facts()
	f.Doing, _ = s.locks.Current(r.ID)
	return StateOf(r, f)
}

// List gives every VM whose labels include those given, oldest first.
func (s *Service) List(labels map[string]string) []View {
	var out []View
	deadline := time.Now().Add(listBudget)
	for _, e := range s.entries() {
		r, _ := e.facts()
		if matches(r.Labels, labels) {
			out = append(out, s.viewBy(e, deadline))
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if !out[i].Created.Equal(out[j].Created) {
			return out[i].Created.Before(out[j].Created)
		}
		return out[i].ID < out[j].ID
	})
	return out
}

func matches(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Get gives one VM by name, id or unique prefix of an id.
func (s *Service) Get(ref string) (View, error) {
	e, err := s.find(ref)
	if err != nil {
		return View{}, err
	}
	return s.view(e), nil
}

// find resolves a reference: a name first, then an id, then a unique prefix
// of an id or of a name.
func (s *Service) find(ref string) (*entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if ref == "" {
		return nil, errs.New(errs.Invalid, "vm_ref_empty", "no VM was named").WithHint("banger ps -a lists all")
	}
	if id, ok := s.names[ref]; ok {
		if e := s.vms[id]; e != nil {
			return e, nil
		}
	}
	if e := s.vms[ref]; e != nil {
		return e, nil
	}
	var hits []string
	var hit *entry
	for id, e := range s.vms {
		if strings.HasPrefix(id, ref) || strings.HasPrefix(e.name(), ref) {
			hits, hit = append(hits, e.name()), e
		}
	}
	switch len(hits) {
	case 1:
		return hit, nil
	case 0:
		return nil, s.notFound(ref)
	}
	slices.Sort(hits)
	return nil, errs.New(errs.Invalid, "vm_ref_ambiguous", "%q means several VMs: %s", clip(ref, 80), strings.Join(hits[:min(len(hits), 5)], ", ")).
		WithHint("give more of the name; banger ps -a lists all")
}

// notFound says so, with the nearest name there is; s.mu is held.
func (s *Service) notFound(ref string) error {
	e := errs.New(errs.NotFound, "vm_not_found", "no VM named %q", clip(ref, 80))
	best, dist := "", 3
	for name, id := range s.names {
		if s.vms[id] == nil {
			continue
		}
		if d := distance(clip(ref, MaxName), name); d < dist || (d == dist && name < best) {
			best, dist = name, d
		}
	}
	if best != "" {
		return e.WithHint("did you mean %q?  (banger ps -a lists all)", best)
	}
	return e.WithHint("banger ps -a lists all")
}

// distance is how many letters must be changed, added, dropped or swapped with
// their neighbour to make a into b.
func distance(a, b string) int {
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// happened adds an event of a VM.
func (s *Service) happened(ctx context.Context, r Record, kind, message string, data map[string]string) {
	s.log.Info(message, "vm", r.ID, "name", r.Name, "event", kind)
	s.opt.Events.Add(ctx, event.Event{Kind: kind, VM: r.ID, Name: r.Name, Message: message, Data: data})
}

// hostSize is what the host has now, and what its hypervisor stands.
func (s *Service) hostSize(ctx context.Context) (HostSize, error) {
	found, err := s.Driver.Probe(ctx)
	if err != nil {
		return HostSize{}, err
	}
	h := s.opt.Host()
	h.Hypervisor = found
	return h, nil
}

// driverOf is the driver a machine was started with.
func (s *Service) driverOf(ref hypervisor.Ref) (hypervisor.Driver, error) {
	if d := s.Drivers[ref.Driver]; d != nil {
		return d, nil
	}
	return nil, errs.New(errs.Unsupported, "driver_unknown", "this banger has no driver %q", ref.Driver)
}
