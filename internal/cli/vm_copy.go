package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/cli/transfer"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// guestHome is where relative paths of a guest begin.
const guestHome = "/root"

// endpoint is one argument of cp.
type endpoint struct {
	vm       string // "" for the host
	path     string // cleaned; absolute in a guest
	stream   bool   // "-": a tar stream
	contents bool   // "dir/.": what is in it, not itself
	intoDir  bool   // "dir/": a directory, whether there or not
	typed    string
}

// copyView is what cp prints.
type copyView struct {
	Files       uint64   `json:"files" doc:"files, directories and links that were copied"`
	Bytes       uint64   `json:"bytes" doc:"bytes of file content"`
	Refused     []string `json:"refused" doc:"what was left out, and why; the status is then 1"`
	RefusedMore int      `json:"refused_more,omitempty" doc:"how many more were left out"`
}

func newVMCopy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cp SRC… DST",
		Short: "Copy files into a VM, out of it, or from one to another",
		Long: `Copy files into a VM, out of it, or from one to another. A path in a VM is
NAME:PATH; relative ones begin at /root. Directories are copied whole.

DST is the new name, unless it is a directory, ends in /, or there are several
SRC: then each lands in it under its own name. SRC/. stands for what is in the
directory. - is a tar stream on standard input or output.

Out of a VM no devices, set-id bits, owners or links to the outside are taken.`,
		Example: "banger cp ./app.conf web:/etc/app.conf\nbanger cp web:/root/out .\nbanger cp web:/var/log - | tar tv",
		Args:    args(2, -1, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVMCopy(cmd.Context(), a, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			if strings.ContainsAny(part, ":/.") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			vms, _ := completeVMs(a, cmd, nil, "running")
			for i, v := range vms {
				name, about, _ := strings.Cut(v, "\t")
				vms[i] = name + ":\t" + about
			}
			return vms, cobra.ShellCompDirectiveNoSpace
		},
	}
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: copyView{}})
}

// parseEndpoint reads NAME:PATH, a path of the host, or -. A path of the host
// that holds a colon is written with a slash before it (./a:b).
func parseEndpoint(s, dir string) (endpoint, error) {
	e := endpoint{typed: s}
	if s == "-" {
		e.stream = true
		return e, nil
	}
	if s == "" {
		return e, usage("an empty path").WithHint("banger cp --help")
	}
	if name, p, ok := strings.Cut(s, ":"); ok && !strings.Contains(name, "/") {
		if name == "" {
			return e, usage("%q names no VM", s).WithHint("NAME:PATH, or ./%s for a file of this host", s)
		}
		e.vm, e.path = name, p
	} else {
		e.path = s
	}
	e.contents = e.path == "." || strings.HasSuffix(e.path, "/.")
	e.intoDir = strings.HasSuffix(e.path, "/") || e.contents || e.path == ".." || strings.HasSuffix(e.path, "/..")
	if e.vm == "" {
		e.contents = e.contents && e.path != "."
		if !filepath.IsAbs(e.path) {
			e.path = filepath.Join(dir, e.path)
		}
		e.path = filepath.Clean(e.path)
		return e, nil
	}
	if e.path == "" {
		e.intoDir = true
	}
	if !path.IsAbs(e.path) {
		e.path = path.Join(guestHome, e.path)
	}
	e.path = path.Clean(e.path)
	if e.path == "/" {
		e.contents, e.intoDir = true, true
	}
	return e, nil
}

// runVMCopy sorts the arguments and hands them to the right direction.
func runVMCopy(ctx context.Context, a *app, argv []string) error {
	ends := make([]endpoint, len(argv))
	guests := 0
	for i, s := range argv {
		e, err := parseEndpoint(s, a.p.Dir)
		if err != nil {
			return err
		}
		ends[i] = e
		if e.vm != "" && i < len(argv)-1 {
			guests++
		}
	}
	srcs, dst := ends[:len(ends)-1], ends[len(ends)-1]
	if guests == 0 && dst.vm == "" {
		return usage("neither side is in a VM").WithHint("banger cp %s NAME:%s", argv[0], argv[len(argv)-1])
	}
	if guests > 0 && guests < len(srcs) {
		return usage("the sources lie both here and in VMs").WithHint("copy them with two commands")
	}
	for _, s := range srcs {
		if s.stream && len(srcs) > 1 {
			return usage("- stands alone: standard input is one tar stream")
		}
	}
	if dst.stream && (len(srcs) > 1 || a.ui.OutTTY()) {
		return usage("- is one tar stream and no terminal can show it").WithHint("banger cp %s - | tar tv", argv[0])
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	k := &copier{a: a, c: c, many: len(srcs) > 1, stages: a.ui.Stages()}
	defer k.stages.Close()
	for _, s := range srcs {
		if err := k.one(ctx, s, dst); err != nil {
			return err
		}
	}
	k.stages.Close()
	return k.report(dst)
}

// copier copies the sources of one command.
type copier struct {
	a      *app
	c      *apiclient.Client
	many   bool
	stages *ui.Stages
	sum    copyView
}

func (k *copier) add(s transfer.Summary) {
	k.sum.Files += s.Entries
	k.sum.Bytes += s.Bytes
	k.sum.Refused = append(k.sum.Refused, s.Refused...)
	k.sum.RefusedMore += s.RefusedMore
}

func (k *copier) report(dst endpoint) error {
	if k.a.ui.JSON && !dst.stream {
		k.sum.Refused = orEmpty(k.sum.Refused)
		if err := k.a.ui.JSONValue(k.sum); err != nil {
			return err
		}
	}
	n := len(k.sum.Refused) + k.sum.RefusedMore
	if n == 0 {
		return nil
	}
	if !k.a.ui.JSON {
		for _, r := range k.sum.Refused {
			k.a.ui.Warn("left out %s", r)
		}
		if k.sum.RefusedMore > 0 {
			k.a.ui.Warn("and %d more", k.sum.RefusedMore)
		}
	}
	return statusError(1)
}

func (k *copier) one(ctx context.Context, src, dst endpoint) error {
	switch {
	case src.vm == "" && src.stream:
		return k.streamIn(ctx, dst)
	case src.vm == "":
		return k.in(ctx, src, dst)
	case dst.stream:
		return k.streamOut(ctx, src)
	case dst.vm == "":
		return k.out(ctx, src, dst)
	}
	return k.across(ctx, src, dst)
}

// progress draws how far a copy is; total 0 is unknown.
func (k *copier) progress(name string, total uint64) transfer.Progress {
	k.stages.Event(ui.Event{Stage: "copy", Status: "started", Message: name})
	return func(n uint64) {
		k.stages.Event(ui.Event{Stage: "copy", Status: "progress", Message: name, Done: int64(n), Total: int64(total), Unit: "bytes"})
	}
}

// guestPlace finds where in a guest a source of this base name goes: the
// directory, and the name in it ("." for the directory itself).
func (k *copier) guestPlace(ctx context.Context, dst endpoint, base string, contents bool) (dir, name string, err error) {
	if contents {
		return dst.path, ".", nil
	}
	if dst.intoDir || k.many {
		return dst.path, base, nil
	}
	isDir, err := k.isGuestDir(ctx, dst)
	if err != nil {
		return "", "", err
	}
	if isDir {
		return dst.path, base, nil
	}
	return path.Dir(dst.path), path.Base(dst.path), nil
}

// isGuestDir asks by opening the path as a directory: it needs nothing in the
// guest but the agent.
func (k *copier) isGuestDir(ctx context.Context, e endpoint) (bool, error) {
	r, err := k.c.CopyOut(ctx, &bangerv1.CopyOutRequest{Vm: e.vm, Dir: e.path, Paths: []string{"."}})
	if err == nil {
		_, err = io.ReadFull(r, make([]byte, 1))
		_ = r.Close()
	}
	switch errs.KindOf(err) {
	case "":
		return true, nil
	case errs.NotFound, errs.Invalid, errs.Conflict:
		if strings.HasPrefix(errs.CodeOf(err), "vm_") {
			return false, err
		}
		return false, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true, nil
	}
	return false, err
}

// in copies a file or directory of the host into a guest.
func (k *copier) in(ctx context.Context, src, dst endpoint) error {
	st, err := os.Lstat(src.path)
	if err != nil {
		if os.IsNotExist(err) {
			return errs.New(errs.NotFound, "file_not_found", "no %q here", src.typed)
		}
		return errs.Wrap(err, errs.Denied, "file_denied", "cannot read %q", src.typed)
	}
	if (src.contents || src.intoDir) && !isDir(src.path) {
		return errs.New(errs.Invalid, "not_directory", "%q is no directory", src.typed).WithHint("without the slash it is a file")
	}
	if st.Mode()&os.ModeSymlink != 0 && src.intoDir {
		if real, err := filepath.EvalSymlinks(src.path); err == nil {
			src.path = real
		}
	}
	dir, name, err := k.guestPlace(ctx, dst, filepath.Base(src.path), src.contents)
	if err != nil {
		return err
	}
	sources := []transfer.Source{{Path: src.path, Name: name}}
	total, err := transfer.Measure(ctx, sources)
	if err != nil {
		return err
	}
	sum, err := k.send(ctx, &bangerv1.CopyInHead{Vm: dst.vm, Dir: dir, MakeDir: true}, func(w io.Writer) (transfer.Summary, error) {
		return transfer.Pack(ctx, w, sources, k.progress(src.typed, total.Bytes))
	})
	k.add(sum)
	return err
}

func isDir(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.IsDir()
}

// send gives a tar stream to a guest while it is made.
func (k *copier) send(ctx context.Context, head *bangerv1.CopyInHead, pack func(io.Writer) (transfer.Summary, error)) (transfer.Summary, error) {
	r, w := io.Pipe()
	type packed struct {
		sum transfer.Summary
		err error
	}
	done := make(chan packed, 1)
	go func() {
		sum, err := pack(w)
		w.CloseWithError(err) // nil is the end of the stream
		done <- packed{sum, err}
	}()
	_, err := k.c.CopyIn(ctx, head, r)
	r.CloseWithError(errRefused)
	p := <-done
	if err == nil || (p.err != nil && !errors.Is(p.err, errRefused)) {
		err = p.err
	}
	return p.sum, err
}

var errRefused = errors.New("the guest takes no more")

// out copies a path of a guest to the host.
func (k *copier) out(ctx context.Context, src, dst endpoint) error {
	base := path.Base(src.path)
	dir, name := dst.path, base
	switch {
	case src.contents:
		name = "."
	case dst.intoDir || k.many || isDir(dst.path):
	default:
		dir, name = filepath.Dir(dst.path), filepath.Base(dst.path)
	}
	if dst.intoDir || src.contents {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return errs.Wrap(err, errs.Invalid, "destination", "cannot make %q", dst.typed)
		}
	}
	if !isDir(dir) {
		return errs.New(errs.NotFound, "directory_not_found", "no directory %q here", dir).WithHint("mkdir -p %s", shellQuote(dir))
	}
	r, err := k.read(ctx, src)
	if err != nil {
		return err
	}
	defer r.Close()
	o := transfer.UnpackOptions{From: base, To: name, Progress: k.progress(src.typed, 0)}
	if src.contents {
		o.From, o.To = ".", "."
	}
	sum, err := transfer.Unpack(ctx, r, dir, o)
	k.add(sum)
	return err
}

// read opens a path of a guest as a tar stream; of "dir/." what is in it.
func (k *copier) read(ctx context.Context, src endpoint) (io.ReadCloser, error) {
	req := &bangerv1.CopyOutRequest{Vm: src.vm, Dir: path.Dir(src.path), Paths: []string{path.Base(src.path)}}
	if src.contents {
		req.Dir, req.Paths = src.path, []string{"."}
	}
	return k.c.CopyOut(ctx, req)
}

// streamOut writes a path of a guest to standard output as a tar stream, as
// the guest gives it.
func (k *copier) streamOut(ctx context.Context, src endpoint) error {
	r, err := k.read(ctx, src)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(k.a.ui.Out(), r)
	return err
}

// streamIn unpacks standard input, a tar stream, in a guest's directory.
func (k *copier) streamIn(ctx context.Context, dst endpoint) error {
	if k.a.ui.InTTY() {
		return usage("- is a tar stream, and standard input is a terminal").WithHint("tar c . | banger cp - %s", dst.typed)
	}
	in, err := newInput(k.a.p.In)
	if err != nil {
		return err
	}
	defer in.Close()
	resp, err := k.c.CopyIn(ctx, &bangerv1.CopyInHead{Vm: dst.vm, Dir: dst.path, MakeDir: true}, in)
	if err != nil {
		return err
	}
	k.add(transfer.Summary{Entries: resp.GetEntries(), Bytes: resp.GetBytes()})
	return nil
}

// across copies from one guest to another through this process, checking
// every entry on the way.
func (k *copier) across(ctx context.Context, src, dst endpoint) error {
	base := path.Base(src.path)
	dir, name, err := k.guestPlace(ctx, dst, base, src.contents)
	if err != nil {
		return err
	}
	r, err := k.read(ctx, src)
	if err != nil {
		return err
	}
	defer r.Close()
	if src.contents {
		base = "."
	}
	sum, err := k.send(ctx, &bangerv1.CopyInHead{Vm: dst.vm, Dir: dir, MakeDir: true}, func(w io.Writer) (transfer.Summary, error) {
		return transfer.Relay(ctx, w, r, base, name, k.progress(src.typed, 0))
	})
	k.add(sum)
	return err
}
