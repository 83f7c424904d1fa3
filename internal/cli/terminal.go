package cli

import (
	"os"
	"sync"

	"golang.org/x/term"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

// terminal is the user's, while a PTY of the guest is joined to it.
type terminal struct {
	in, out *os.File
	mu      sync.Mutex
	saved   *term.State
}

// raw passes every key through until restore. It does nothing where standard
// input is no terminal.
func (t *terminal) raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil || !term.IsTerminal(int(t.in.Fd())) {
		return nil
	}
	st, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return err
	}
	t.saved = st
	return nil
}

// restore gives the terminal back as it was. It may be called at any time and
// twice.
func (t *terminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		_ = term.Restore(int(t.in.Fd()), t.saved)
		t.saved = nil
	}
}

// size is the terminal's now, nil where there is none.
func (t *terminal) size() *bangerv1.WindowSize {
	for _, f := range []*os.File{t.out, t.in} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return &bangerv1.WindowSize{Rows: uint32(h), Cols: uint32(w)}
		}
	}
	return nil
}
