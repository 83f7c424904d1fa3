package daemon_test

import (
	"fmt"
	"os"
	"testing"
)

// Making and unmaking VMs leaves no descriptor and no thread behind in the
// daemon, and its memory does not grow.
func TestCyclesLeaveNoGrowth(t *testing.T) {
	n := 12
	if whole {
		n = 100
	}
	h := newHouse(t)
	h.start()
	cycle := func() {
		v := h.mustCreate("")
		if _, err := h.exec(v.GetId(), "true"); err != nil {
			t.Fatal(err)
		}
		if err := h.deleteVM(t.Context(), v.GetId(), true); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		cycle()
	}
	fds, rss := h.costs()
	for range n {
		cycle()
	}
	var fds2 int
	h.until("descriptors are given back", func() bool {
		fds2, _ = h.costs()
		return fds2 <= fds+2
	})
	_, rss2 := h.costs()
	if grown := rss2 - rss; grown > 12<<20 {
		t.Errorf("the daemon grew by %d KiB in %d cycles", grown>>10, n)
	}
	t.Logf("%d cycles: %d to %d descriptors, %d to %d MiB", n, fds, fds2, rss>>20, rss2>>20)
	h.nothingLeft()
}

// costs are the daemon's open descriptors and its resident bytes.
func (h *house) costs() (fds int, rss int64) {
	h.t.Helper()
	dir := fmt.Sprintf("/proc/%d", h.daemon.Process.Pid)
	list, err := os.ReadDir(dir + "/fd")
	if err != nil {
		h.t.Fatal(err)
	}
	status, err := os.ReadFile(dir + "/statm")
	if err != nil {
		h.t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(status), &size, &pages); err != nil {
		h.t.Fatal(err)
	}
	return len(list), pages * int64(os.Getpagesize())
}
