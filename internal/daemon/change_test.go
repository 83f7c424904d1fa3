package daemon_test

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/errs"
)

func (h *house) set(req *bangerv1.SetRequest) (*bangerv1.SetResponse, error) {
	r, err := h.client.VMs.Set(h.t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, apiclient.Translate(err)
	}
	return r.Msg, nil
}

func TestSetSaysWhatNeedsARestart(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web")
	cpus, mem, disk := uint32(2), int64(512<<20), int64(128<<20)
	r, err := h.set(&bangerv1.SetRequest{Vm: "web", Cpus: &cpus, Memory: &mem, Disk: &disk, Labels: map[string]string{"team": "a"}})
	if err != nil || strings.Join(r.GetNeedsRestart(), " ") != "cpus memory" {
		t.Fatalf("%v %v", r, err)
	}
	h.kill()
	h.start()
	v, err := h.get("web")
	if err != nil || v.GetSpec().GetCpus() != 2 || v.GetSpec().GetMemory() != mem || v.GetSpec().GetDisk() != disk || v.GetLabels()["team"] != "a" {
		t.Fatalf("%v %v", v, err)
	}
	zero, small := uint32(0), int64(64<<20)
	for code, req := range map[string]*bangerv1.SetRequest{
		"vm_cpus_invalid": {Vm: "web", Cpus: &zero},
		"disk_shrink":     {Vm: "web", Disk: &small},
		"label_invalid":   {Vm: "web", Labels: map[string]string{"a b": ""}},
		"vm_not_found":    {Vm: "nope"},
	} {
		if _, err := h.set(req); errs.CodeOf(err) != code {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestRenamingKeepsTheVM(t *testing.T) {
	h := newHouse(t)
	h.start()
	id := h.mustCreate("web").GetId()
	h.mustCreate("db", noStart)
	rename := func(to string) error {
		_, err := h.client.VMs.Rename(t.Context(), connect.NewRequest(&bangerv1.RenameRequest{Vm: "web", Name: to}))
		return apiclient.Translate(err)
	}
	if err := rename("db"); errs.CodeOf(err) != "vm_name_taken" {
		t.Fatal(err)
	}
	if err := rename("Bad Name"); errs.CodeOf(err) != "vm_name_invalid" {
		t.Fatal(err)
	}
	if err := rename("www"); err != nil {
		t.Fatal(err)
	}
	if v, err := h.get("www"); err != nil || v.GetId() != id {
		t.Fatalf("%v %v", v, err)
	}
	if _, err := h.get("web"); errs.CodeOf(err) != "vm_not_found" {
		t.Fatal(err)
	}
	h.mustCreate("web", noStart) // the old name is free
	if _, err := h.exec("www", "true"); err != nil {
		t.Fatal(err)
	}
}

// What has expired is stopped, not deleted: its disks may hold work.
func TestAnExpiredVMIsStopped(t *testing.T) {
	h := newHouse(t)
	h.start()
	h.mustCreate("web", func(r *bangerv1.CreateRequest) { r.Expires = pbDuration(1500 * time.Millisecond) })
	h.mustCreate("other")
	h.kill() // the time runs on while no daemon does
	h.start()
	h.until("it is stopped", func() bool {
		v, err := h.get("web")
		return err == nil && v.GetState() == bangerv1.State_STATE_STOPPED && v.GetReason() == "expired"
	})
	if v, err := h.get("other"); err != nil || v.GetState() != bangerv1.State_STATE_RUNNING {
		t.Fatalf("%v %v", v, err)
	}
	r, err := h.client.VMs.Prune(t.Context(), connect.NewRequest(&bangerv1.PruneRequest{DryRun: true}))
	if err != nil || len(r.Msg.GetVms()) != 1 || len(h.list()) != 2 {
		t.Fatalf("%v %v", r, err)
	}
	if _, err := h.client.VMs.Prune(t.Context(), connect.NewRequest(&bangerv1.PruneRequest{})); err != nil {
		t.Fatal(err)
	}
	if all := h.list(); len(all) != 1 || all[0].GetName() != "other" {
		t.Fatalf("%v", summaries(all))
	}
}

func TestEventsTellTheWholeStory(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web", cold)
	h.stopVM(t.Context(), "web", time.Second)
	h.kill()
	h.start()
	h.deleteVM(t.Context(), "web", true)
	s, err := h.client.System.Events(t.Context(), connect.NewRequest(&bangerv1.EventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var kinds []string
	var last uint64
	for s.Receive() {
		e := s.Msg()
		if e.GetCursor() != last+1 || e.GetVm() != v.GetId() {
			t.Errorf("after %d: %v", last, e)
		}
		last = e.GetCursor()
		kinds = append(kinds, e.GetKind())
	}
	if got := strings.Join(kinds, " "); got != "vm.created vm.started vm.stopped vm.deleted" || s.Err() != nil {
		t.Fatalf("%s %v", got, s.Err())
	}
}

func TestAReferenceIsANameAnIDOrAPrefix(t *testing.T) {
	h := newHouse(t)
	h.start()
	a := h.mustCreate("abc-one", noStart)
	h.mustCreate("abc-two", noStart)
	for _, ref := range []string{"abc-one", a.GetId(), a.GetId()[:8], "abc-o"} {
		if v, err := h.get(ref); err != nil || v.GetId() != a.GetId() {
			t.Errorf("%s: %v %v", ref, v, err)
		}
	}
	if _, err := h.get("abc"); errs.CodeOf(err) != "vm_ref_ambiguous" || !strings.Contains(err.Error(), "abc-one, abc-two") {
		t.Errorf("%v", err)
	}
	if _, err := h.get(""); errs.CodeOf(err) != "vm_ref_empty" {
		t.Errorf("%v", err)
	}
}

// The logs hold what each part said of the VM, and following ends with it.
func TestLogsOfEachPart(t *testing.T) {
	h := newHouse(t)
	h.start()
	v := h.mustCreate("web", cold)
	read := func(req *bangerv1.LogsRequest) string {
		s, err := h.client.VMs.Logs(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var b strings.Builder
		for s.Receive() {
			b.Write(s.Msg().GetData())
		}
		if s.Err() != nil {
			t.Fatal(s.Err())
		}
		return b.String()
	}
	h.until("the console has been written down", func() bool {
		return strings.Contains(read(&bangerv1.LogsRequest{Vm: "web", Console: true}), "is up")
	})
	own := read(&bangerv1.LogsRequest{Vm: "web", Daemon: true, Tail: 3})
	if strings.Count(own, "\n") != 3 || strings.Count(own, v.GetId()) < 3 {
		t.Errorf("%q", own)
	}
	time.AfterFunc(300*time.Millisecond, func() { h.deleteVM(t.Context(), "web", true) })
	read(&bangerv1.LogsRequest{Vm: "web", Console: true, Follow: true})
}
