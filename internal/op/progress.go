// Package op is how long work shows itself and is owned: named stages with
// progress, and one operation at a time for each VM. It prints nothing.
package op

import "time"

// Status of a stage.
type Status string

// The statuses of a stage.
const (
	Started  Status = "started"
	Progress Status = "progress"
	Done     Status = "done"
	Failed   Status = "failed"
	Note     Status = "note" // one line worth telling, not a stage
)

// Event is one step of an operation's progress.
type Event struct {
	Stage   string // stable, lower_snake_case: "image", "kernel", "disks", "boot", "clone", "workspace"
	Status  Status
	Message string // what a person reads beside the stage
	Done    int64
	Total   int64  // 0 where unknown
	Unit    string // "bytes", "packages", ""
	Elapsed time.Duration
}

// Reporter takes events. It must not block for long and may be called from
// several goroutines. A nil Reporter drops them.
type Reporter func(Event)

// Stage begins a stage.
func (r Reporter) Stage(name, message string) *Stage {
	s := &Stage{r: r, name: name, start: time.Now()}
	r.emit(Event{Stage: name, Status: Started, Message: message})
	return s
}

// Note tells one line.
func (r Reporter) Note(stage, message string) {
	r.emit(Event{Stage: stage, Status: Note, Message: message})
}

func (r Reporter) emit(e Event) {
	if r != nil {
		r(e)
	}
}

// Stage is one named part of an operation, from Reporter.Stage to End.
type Stage struct {
	r     Reporter
	name  string
	start time.Time
	last  time.Time
}

// Progress tells how far the stage is; calls closer than 100 ms together are
// dropped, except the last one of a known total.
func (s *Stage) Progress(done, total int64, unit, message string) {
	now := time.Now()
	if now.Sub(s.last) < 100*time.Millisecond && (total == 0 || done != total) {
		return
	}
	s.last = now
	s.r.emit(Event{Stage: s.name, Status: Progress, Message: message, Done: done, Total: total, Unit: unit, Elapsed: now.Sub(s.start)})
}

// End finishes the stage: Done with the message, or Failed with err's.
func (s *Stage) End(err error, message string) {
	e := Event{Stage: s.name, Status: Done, Message: message, Elapsed: time.Since(s.start)}
	if err != nil {
		e.Status, e.Message = Failed, err.Error()
	}
	s.r.emit(e)
}
