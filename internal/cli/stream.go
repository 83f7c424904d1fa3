package cli

import (
	"encoding/base64"
	"unicode/utf8"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// runLine is one line of run --json and exec --json. Which fields there are
// depends on type.
type runLine struct {
	Type      string         `json:"type" doc:"stage, warning, vm, workspace, stdout, stderr, exit"`
	Stage     *stageView     `json:"stage,omitempty" doc:"of type stage"`
	Warning   string         `json:"warning,omitempty" doc:"of type warning"`
	VM        *vmView        `json:"vm,omitempty" doc:"of type vm: the VM that was made"`
	Workspace *workspaceView `json:"workspace,omitempty" doc:"of type workspace: what was copied"`
	Data      *string        `json:"data,omitempty" doc:"of types stdout and stderr: text"`
	Base64    *string        `json:"base64,omitempty" doc:"of types stdout and stderr, in place of data: bytes that are no text"`
	Exit      *exitView      `json:"exit,omitempty" doc:"of type exit: how the command ended; the last line"`
}

// stageView is a step of long work.
type stageView struct {
	Stage     string `json:"stage" doc:"stable name"`
	Status    string `json:"status" doc:"started, progress, done, failed or note"`
	Message   string `json:"message,omitempty" doc:"for people"`
	Done      int64  `json:"done,omitempty" doc:"how far"`
	Total     int64  `json:"total,omitempty" doc:"of how much"`
	Unit      string `json:"unit,omitempty" doc:"bytes, packages, …"`
	ElapsedMS int64  `json:"elapsed_ms" doc:"milliseconds since the stage began"`
}

// exitView is how a command in a guest ended.
type exitView struct {
	Code     uint32 `json:"code" doc:"exit status, as a shell shows it"`
	Signal   string `json:"signal,omitempty" doc:"the signal that ended it: KILL, …"`
	TimedOut bool   `json:"timed_out" doc:"its --timeout passed"`
	Failure  string `json:"failure,omitempty" doc:"why it never ran: not_found or cannot_run"`
	Message  string `json:"message,omitempty" doc:"for people"`
	VMKept   string `json:"vm_kept,omitempty" doc:"why an ephemeral VM was kept"`
}

// workspaceView is what workspace prepare did.
type workspaceView struct {
	GuestPath string   `json:"guest_path" doc:"where it is in the guest"`
	Files     uint64   `json:"files" doc:"how many were copied"`
	Bytes     uint64   `json:"bytes" doc:"how much was copied"`
	Git       bool     `json:"git" doc:"whether it is a git repository"`
	Head      string   `json:"head,omitempty" doc:"its commit"`
	Branch    string   `json:"branch,omitempty" doc:"its branch"`
	Warnings  []string `json:"warnings" doc:"what was left out, and why"`
	Paths     []string `json:"paths,omitempty" doc:"of a dry run: what would be copied"`
}

func viewWorkspace(w *bangerv1.WorkspaceResult) workspaceView {
	return workspaceView{GuestPath: w.GetGuestPath(), Files: w.GetFiles(), Bytes: w.GetBytes(), Git: w.GetGit(), Head: w.GetHead(),
		Branch: w.GetBranch(), Warnings: orEmpty(w.GetWarnings()), Paths: w.GetPaths()}
}

func orEmpty[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func viewStage(p *bangerv1.Progress) *stageView {
	return &stageView{Stage: p.GetStage(), Status: p.GetStatus(), Message: p.GetMessage(), Done: p.GetDone(), Total: p.GetTotal(), Unit: p.GetUnit(), ElapsedMS: p.GetElapsedMs()}
}

func exitLine(e *bangerv1.ExecExit) runLine {
	v := &exitView{Code: e.GetCode(), Signal: e.GetSignal(), TimedOut: e.GetTimedOut(), Failure: e.GetFailure(), Message: e.GetMessage(), VMKept: e.GetVmKept()}
	switch {
	case v.TimedOut:
		v.Code = 124
	case v.Failure == "not_found":
		v.Code = 127
	case v.Failure != "":
		v.Code = 126
	}
	return runLine{Type: "exit", Exit: v}
}

// jsonChunks writes an output of a command as JSON lines. It holds back what
// may be the beginning of a character, so that text stays text however it was
// cut on the way.
type jsonChunks struct {
	a    *app
	kind string
	rest []byte
}

func (j *jsonChunks) Write(p []byte) (int, error) {
	b := append(j.rest, p...)
	keep := 0
	for k := 1; k <= min(len(b), utf8.UTFMax-1); k++ {
		if c := b[len(b)-k]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-k:]) {
				keep = k
			}
			break
		}
	}
	j.rest = append([]byte(nil), b[len(b)-keep:]...)
	if err := j.emit(b[:len(b)-keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (j *jsonChunks) flush() {
	rest := j.rest
	j.rest = nil
	_ = j.emit(rest) // at the end of all output; a broken pipe shows at the exit line
}

func (j *jsonChunks) emit(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	l := runLine{Type: j.kind}
	if s := string(b); utf8.ValidString(s) {
		l.Data = &s
	} else {
		s = base64.StdEncoding.EncodeToString(b)
		l.Base64 = &s
	}
	return j.a.ui.JSONLine(l)
}

// errorLine is how a failure looks on standard error with --json.
type errorLine struct {
	Error *ui.Failure `json:"error" doc:"what failed"`
}
