package ui

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Quick is how long work may take before banger says anything of it.
const Quick = 500 * time.Millisecond

const (
	frameEvery     = 100 * time.Millisecond // redraw on a terminal
	heartbeatEvery = 10 * time.Second       // a line of progress where there is none
	stageColumn    = 15
)

// Event is one step of long work; the statuses are those of package op.
type Event struct {
	Stage   string
	Status  string // started, progress, done, failed, note
	Message string
	Done    int64
	Total   int64
	Unit    string
	Elapsed time.Duration // of the stage; 0 where unknown
}

// Stages draws the stages of one piece of long work on standard error: on a
// terminal one line each, redrawn while it goes on and left standing when
// finished; elsewhere plain lines with a time. It draws nothing when all is
// over within Quick.
type Stages struct {
	u     *UI
	start time.Time
	stop  chan struct{}
	ended chan struct{}

	mu     sync.Mutex
	live   bool // Quick has passed (or -v): draw at once
	held   []string
	active []*stage
	drawn  int // lines of the last frame
	closed bool
}

type stage struct {
	name, message string
	done, total   int64
	unit          string
	start         time.Time
	said          time.Time
}

// Stages begins a drawing; Close ends it.
func (u *UI) Stages() *Stages {
	s := &Stages{u: u, start: time.Now(), stop: make(chan struct{}), ended: make(chan struct{}), live: u.Verbose}
	if u.Quiet || u.JSON {
		s.closed = true
		close(s.ended)
		return s
	}
	go s.run()
	return s
}

func (s *Stages) run() {
	defer close(s.ended)
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case now := <-tick.C:
			s.mu.Lock()
			if now.Sub(s.start) >= Quick {
				s.live = true
			}
			if s.live {
				s.frame(now)
			}
			s.mu.Unlock()
		}
	}
}

// Event takes one step. It may be called from several goroutines.
func (s *Stages) Event(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	now := time.Now()
	switch e.Status {
	case "started", "progress":
		st := s.find(e.Stage, now)
		if e.Message != "" {
			st.message = e.Message
		}
		if e.Status == "progress" {
			st.done, st.total, st.unit = e.Done, e.Total, e.Unit
		}
	case "done", "failed":
		s.finish(e, now)
	case "note":
		s.held = append(s.held, s.fit("   "+s.u.line(e.Message)))
	}
	if s.live {
		s.frame(now)
	}
}

func (s *Stages) find(name string, now time.Time) *stage {
	for _, st := range s.active {
		if st.name == name {
			return st
		}
	}
	st := &stage{name: name, start: now, said: now}
	s.active = append(s.active, st)
	return st
}

// finish writes a stage's last line. Why one failed is not said here: the
// error or a note that follows says it once.
func (s *Stages) finish(e Event, now time.Time) {
	took := e.Elapsed
	if e.Status == "failed" {
		e.Message = ""
	}
	for i, st := range s.active {
		if st.name != e.Stage {
			continue
		}
		if took == 0 {
			took = now.Sub(st.start)
		}
		if e.Message == "" {
			e.Message = st.message
		}
		s.active = append(s.active[:i], s.active[i+1:]...)
		break
	}
	mark, c := "✓", green
	if e.Status == "failed" {
		mark, c = "✗", red
	}
	s.held = append(s.held, s.row(s.u.paint(c, s.u.localise(mark)), e.Stage, e.Message, Elapsed(took)))
}

// frame writes the finished lines and, on a terminal, draws those that go on.
func (s *Stages) frame(now time.Time) {
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", s.drawn)
		s.drawn = 0
	}
	for _, l := range s.held {
		b.WriteString(l + "\n")
	}
	s.held = nil
	for _, st := range s.active {
		if s.u.cursor {
			b.WriteString(s.row(s.u.paint(dim, s.spinner(now)), st.name, s.progress(st, true), Elapsed(now.Sub(st.start))) + "\n")
			s.drawn++
		} else if now.Sub(st.said) >= heartbeatEvery {
			st.said = now
			b.WriteString(s.row(" ", st.name, s.progress(st, false), Elapsed(now.Sub(st.start))) + "\n")
		}
	}
	if b.Len() > 0 {
		_, _ = s.u.o.Err.Write([]byte(b.String()))
	}
}

// Close takes away the lines that are still going on and ends the drawing.
// What had finished is shown if anything was. It may be called twice.
func (s *Stages) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.ended
		return
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active = nil
	if s.live || time.Since(s.start) >= Quick {
		s.frame(time.Now())
	}
}

func (s *Stages) spinner(now time.Time) string {
	frames := []string{"⠋", "⠙", "⠸", "⠴", "⠦", "⠇"}
	if !s.u.unicode {
		frames = []string{"|", "/", "-", "\\"}
	}
	return frames[int(now.Sub(s.start)/frameEvery)%len(frames)]
}

// progress is the text beside an active stage: how far, of what.
func (s *Stages) progress(st *stage, bar bool) string {
	var parts []string
	if st.total > 0 {
		share := min(max(float64(st.done)/float64(st.total), 0), 1)
		if bar {
			parts = append(parts, s.bar(share))
		}
		parts = append(parts, fmt.Sprintf("%3.0f%%", share*100))
		if st.unit != "" && st.unit != "%" && st.unit != "percent" {
			parts = append(parts, amount(st.done, st.unit)+"/"+amount(st.total, st.unit))
		}
	} else if st.done > 0 {
		parts = append(parts, strings.TrimSpace(amount(st.done, st.unit)+" "+unitName(st.unit)))
	}
	if st.message != "" {
		parts = append(parts, st.message)
	}
	return strings.Join(parts, "  ")
}

func (s *Stages) bar(share float64) string {
	const cells = 16
	full := int(share * cells)
	if s.u.unicode {
		return strings.Repeat("━", full) + strings.Repeat("┈", cells-full)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + "]"
}

func amount(n int64, unit string) string {
	if unit == "bytes" {
		return Bytes(n)
	}
	return fmt.Sprint(n)
}

func unitName(unit string) string {
	if unit == "bytes" {
		return ""
	}
	return unit
}

// row is one line: mark, stage, text, time at the right edge.
func (s *Stages) row(mark, name, text, took string) string {
	name, text = s.u.line(name), s.u.line(text)
	head := " " + mark + " " + name + strings.Repeat(" ", max(1, stageColumn-Width(name)))
	if !s.u.cursor {
		return strings.TrimRight(head+text, " ") + "  " + took
	}
	// the mark is one or two columns wide whatever its colour codes are
	used := 4 + Width(name) + max(1, stageColumn-Width(name)) - 1
	room := min(s.u.width(), 100) - used - len(took) - 3
	if room < 0 {
		return s.u.cut(" "+name+" "+took, s.u.width()-1)
	}
	text = s.u.cut(text, room)
	return head + text + strings.Repeat(" ", max(0, room-Width(text))) + "  " + took
}

// fit keeps a line within the terminal, so that redrawing counts right.
func (s *Stages) fit(l string) string {
	if !s.u.cursor {
		return l
	}
	return s.u.cut(l, s.u.width()-1)
}
