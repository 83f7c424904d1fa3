package vm

import (
	"context"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Stats is what one VM uses, as the host sees it and as its guest says.
type Stats struct {
	ID, Name   string
	At         time.Time
	CPU        time.Duration // of the hypervisor, since its start
	CPUPercent float64       // of one core, since the sample before
	HostMemory int64
	DiskUsed   int64
	Guest      *wire.Stats // hearsay; nil when the guest did not answer
	Err        error
}

// Limits of sampling.
const (
	statsLimit  = 2 * time.Second
	firstSample = 200 * time.Millisecond
	minInterval = 200 * time.Millisecond
)

// Stats samples VMs (all that run, where none is named) and gives the samples
// to f: once, or with follow every interval until ctx ends.
func (s *Service) Stats(ctx context.Context, refs []string, follow bool, interval time.Duration, f func([]Stats) error) error {
	if interval == 0 {
		interval = time.Second
	}
	if interval < minInterval {
		return errs.New(errs.Invalid, "interval_invalid", "interval: %s is shorter than %s", interval, minInterval).WithHint("--interval 1s")
	}
	last := map[string]Stats{}
	if _, err := s.sample(ctx, refs, last, false); err != nil {
		return err
	}
	wait := firstSample
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		all, err := s.sample(ctx, refs, last, true)
		if err != nil {
			return err
		}
		if err := f(all); err != nil || !follow {
			return err
		}
		wait = interval
	}
}

func (s *Service) sample(ctx context.Context, refs []string, last map[string]Stats, guests bool) ([]Stats, error) {
	var chosen []*entry
	if len(refs) == 0 {
		for _, v := range s.List(nil) {
			if v.State == StateRunning {
				refs = append(refs, v.ID)
			}
		}
	}
	for _, ref := range refs {
		e, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, e)
	}
	out := make([]Stats, len(chosen))
	var wg sync.WaitGroup
	for i, e := range chosen {
		wg.Go(func() { out[i] = s.sampleOne(ctx, e, guests) })
	}
	wg.Wait()
	for i := range out {
		if before, ok := last[out[i].ID]; ok && out[i].CPU >= before.CPU {
			if d := out[i].At.Sub(before.At); d > 0 {
				out[i].CPUPercent = 100 * float64(out[i].CPU-before.CPU) / float64(d)
			}
		}
		last[out[i].ID] = out[i]
	}
	return out, nil
}

func (s *Service) sampleOne(ctx context.Context, e *entry, guest bool) Stats {
	r := e.record()
	st := Stats{ID: r.ID, Name: r.Name, At: time.Now(), DiskUsed: s.diskUsed(r.ID)}
	m := e.machine()
	if m == nil || closed(m.Done()) {
		st.Err = errs.New(errs.Conflict, "vm_stopped", "%q is not running", r.Name).WithHint("banger vm start %s", r.Name)
		return st
	}
	if u, err := m.Usage(); err == nil {
		st.CPU, st.HostMemory = u.CPU, u.Private
	} else {
		st.Err = err
	}
	if !guest {
		return st
	}
	gctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	c, err := e.client(gctx)
	if err == nil {
		var g wire.Stats
		if g, err = c.Stats(gctx); err == nil {
			st.Guest = &g
		}
	}
	if err != nil {
		st.Err = err
	}
	return st
}
