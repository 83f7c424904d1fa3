package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// interrupted is the cause of a context that a signal cancelled.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return fmt.Sprintf("interrupted by signal %d", int(i.sig)) }

// signals watches the process's signals. Until somebody takes them, the first
// of INT, TERM, HUP and QUIT cancels the work, and the next one of the same
// name has its default effect: it ends the process at once.
type signals struct {
	ch     chan os.Signal
	pipe   chan os.Signal
	done   chan struct{}
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	taken func(syscall.Signal)
}

func watchSignals(ctx context.Context) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &signals{ch: make(chan os.Signal, 16), pipe: make(chan os.Signal, 1), done: make(chan struct{}), cancel: cancel}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(sig) { // nohup, or a background job of a script
			signal.Notify(s.ch, sig)
		}
	}
	// a write to a closed pipe shall give an error, not end the process
	signal.Notify(s.pipe, syscall.SIGPIPE)
	go s.run()
	return ctx, s
}

func (s *signals) run() {
	defer close(s.done)
	for got := range s.ch {
		sig, ok := got.(syscall.Signal)
		if !ok {
			continue
		}
		s.mu.Lock()
		h := s.taken
		s.mu.Unlock()
		if h != nil {
			h(sig)
			continue
		}
		s.cancel(interrupted{sig})
		signal.Reset(sig)
	}
}

// take hands INT, TERM, HUP, QUIT and the further ones to h, which must not
// block, until the returned function is called.
func (s *signals) take(h func(syscall.Signal), further ...os.Signal) (release func()) {
	s.mu.Lock()
	s.taken = h
	s.mu.Unlock()
	if len(further) > 0 {
		signal.Notify(s.ch, further...)
	}
	return func() {
		if len(further) > 0 {
			signal.Reset(further...)
		}
		s.mu.Lock()
		s.taken = nil
		s.mu.Unlock()
	}
}

func (s *signals) stop() {
	signal.Stop(s.ch)
	signal.Stop(s.pipe)
	close(s.ch)
	<-s.done
	s.cancel(nil)
}
