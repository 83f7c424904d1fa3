package daemon_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/daemon"
	"github.com/banger-dev/banger/internal/vm"
)

// I1: for each step of the table the daemon is killed before and after it, in
// each operation that goes through it. Afterwards every VM runs and can be
// reached or is stopped with a reason, nothing stray is there, and reconciling
// again changes nothing. The list is the table's own; without the tag e2e every
// ninth story is told.
func TestKilledAtEachStep(t *testing.T) {
	type story struct {
		op, point string
	}
	var stories []story
	for _, p := range []string{"row.before", "row.after"} {
		stories = append(stories, story{"create", p}, story{"create-cold", p})
	}
	for _, st := range vm.StepNames() {
		for _, at := range []string{".before", ".after"} {
			stories = append(stories, story{"create", st + at}, story{"create-cold", st + at})
			switch st {
			case "dirs", "disks":
			default:
				stories = append(stories, story{"start", st + at})
			}
		}
		switch st {
		case "identity", "handover": // have no way down
		case "dirs", "disks":
			stories = append(stories, story{"delete", st + ".down"})
		default:
			stories = append(stories, story{"stop", st + ".down"}, story{"delete", st + ".down"}, story{"crash", st + ".down"})
		}
	}
	stories = append(stories, story{"delete", "forget.before"}, story{"stop", "back.before"})
	limit := make(chan struct{}, 4)
	for i, s := range stories {
		if !whole && i%9 != 0 {
			continue
		}
		t.Run(s.op+"/"+s.point, func(t *testing.T) {
			t.Parallel()
			limit <- struct{}{}
			defer func() { <-limit }()
			killedAt(t, s.op, s.point)
		})
	}
}

func killedAt(t *testing.T, op, point string) {
	h := newHouse(t)
	env := daemon.EnvFailpoint + "=" + point
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	switch op {
	case "create", "create-cold":
		h.start(env)
		opts := []createOpt{}
		if op == "create-cold" {
			opts = append(opts, cold)
		}
		if v, err := h.create(ctx, "web", opts...); err == nil {
			t.Fatalf("the daemon was not killed: %v", v)
		}
	default:
		h.start()
		if op == "start" {
			h.mustCreate("web", noStart)
		} else {
			h.mustCreate("web", cold)
		}
		h.term()
		h.start(env)
		switch op {
		case "start":
			h.startVM(ctx, "web")
		case "stop":
			h.stopVM(ctx, "web", time.Second)
		case "delete":
			h.deleteVM(ctx, "web", true)
		case "crash":
			v, err := h.get("web")
			if err != nil {
				t.Fatal(err)
			}
			killPID(t, v.GetPid())
		}
	}
	h.awaitEnd()
	if state := h.daemon.ProcessState.String(); state != "signal: killed" {
		t.Fatalf("the daemon ended otherwise: %s\n%s", state, h.out.String())
	}
	h.start()
	checkTruth(t, h, op, point)
	before := fmt.Sprint(summaries(h.list()))
	h.kill()
	h.start()
	if after := fmt.Sprint(summaries(h.list())); after != before {
		t.Errorf("reconciling again changed %s to %s", before, after)
	}
	for _, v := range h.list() {
		if err := h.deleteVM(ctx, v.GetName(), true); err != nil {
			t.Fatal(err)
		}
	}
	h.nothingLeft()
	if _, err := h.create(ctx, "web"); err != nil {
		t.Errorf("the name cannot be used again: %v", err)
	}
}

func summaries(all []*bangerv1.VM) (out []string) {
	for _, v := range all {
		out = append(out, fmt.Sprintf("%s %s %q %d", v.GetName(), v.GetState(), v.GetReason(), v.GetPid()))
	}
	return out
}

// checkTruth holds what is shown against what is there.
func checkTruth(t *testing.T, h *house, op, point string) {
	t.Helper()
	h.noStrays()
	h.until("nothing is under way", func() bool {
		for _, v := range h.list() {
			if v.GetState() == bangerv1.State_STATE_STOPPING {
				return false
			}
		}
		return true
	})
	all := h.list()
	if (op == "create" || op == "create-cold" || op == "delete") && len(all) != 0 {
		t.Errorf("%s killed at %s leaves %v", op, point, summaries(all))
	}
	for _, v := range all {
		procs := 0
		for _, p := range h.processes() {
			if p.VM == v.GetId() {
				procs++
			}
		}
		switch v.GetState() {
		case bangerv1.State_STATE_RUNNING:
			if _, err := h.exec(v.GetName(), "true"); err != nil {
				t.Errorf("%q is said to run and cannot be reached: %v", v.GetName(), err)
			}
		case bangerv1.State_STATE_STOPPED, bangerv1.State_STATE_BROKEN:
			if procs > 0 {
				t.Errorf("%q is said to be %s and has %d processes", v.GetName(), v.GetState(), procs)
			}
			if v.GetReason() == "" && op != "start" {
				t.Errorf("%q is %s and no reason is given", v.GetName(), v.GetState())
			}
		default:
			t.Errorf("%q is for ever %s", v.GetName(), v.GetState())
		}
	}
}
