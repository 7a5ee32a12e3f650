package seam

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/printer"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pkg/errors"
	"golang.org/x/tools/go/ast/astutil"
)

// Match is the place where a seam matched.
type Match struct {
	Seam *Seam
	File string // in the folder of the package
	Line int    // in the original file
}

// Position returns the place as path:line in the module.
func (m Match) Position() string {
	return fmt.Sprintf("%s/%s:%d", m.Seam.Package, m.File, m.Line)
}

// edit replaces the bytes from start to end.
type edit struct {
	start, end int
	text       string
	seam       *Seam
}

type file struct {
	name  string
	src   []byte
	ast   *ast.File
	edits []edit
}

// pkg is the syntax of the original files of one package. Seams match the original and
// do not see each other's edits.
type pkg struct {
	name  string
	fset  *token.FileSet
	files []*file
}

// Apply applies the seams of one package to its files, given by name, except for test
// files. It returns the changed files and the match of each seam, in the order of seams.
// It returns an error if gofmt would format a changed file differently.
func Apply(name string, files map[string][]byte, seams []*Seam) (map[string][]byte, []Match, error) {
	p, err := parse(name, files)
	if err != nil {
		return nil, nil, err
	}

	var matches []Match
	for _, s := range seams {
		m, err := p.apply(s)
		if err != nil {
			return nil, nil, errors.Wrapf(err, "seam %s in package %s", s.Name, name)
		}
		matches = append(matches, m)
	}

	out := map[string][]byte{}
	for _, f := range p.files {
		if len(f.edits) == 0 {
			continue
		}
		dt, err := f.result()
		if err != nil {
			return nil, nil, errors.Wrapf(err, "package %s", name)
		}
		out[f.name] = dt
	}
	return out, matches, nil
}

// parse reads the files of a package, without its tests.
func parse(name string, files map[string][]byte) (*pkg, error) {
	p := &pkg{name: name, fset: token.NewFileSet()}
	for _, fn := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(fn, ".go") || strings.HasSuffix(fn, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(p.fset, fn, files[fn], parser.ParseComments)
		if err != nil {
			return nil, errors.Wrapf(err, "failed to parse package %s", name)
		}
		p.files = append(p.files, &file{name: fn, src: files[fn], ast: f})
	}
	return p, nil
}

// apply finds the seam and records its edits.
func (p *pkg) apply(s *Seam) (Match, error) {
	f, decl, err := p.find(s.In)
	if err != nil {
		return Match{}, err
	}
	e := &editor{pkg: p, file: f, decl: decl, seam: s}
	var at token.Pos
	switch {
	case s.AddField != "":
		at, err = e.addField(decl)
	case s.Rename != "":
		at, err = e.rename(decl, s.Rename)
	case s.ReplaceCall != "":
		at, err = e.replaceCall(decl)
	case s.InsertAfter != "":
		at, err = e.insertAfter(decl)
	case s.Split != nil:
		at, err = e.split(decl)
	default:
		err = errors.New("no operation")
	}
	if err != nil {
		return Match{}, err
	}
	return Match{Seam: s, File: f.name, Line: p.fset.Position(at).Line}, nil
}

// find returns the only declaration of the given name: a *ast.FuncDecl, or a
// *ast.GenDecl with a single type.
func (p *pkg) find(name string) (*file, ast.Decl, error) {
	type found struct {
		file *file
		decl ast.Decl
	}
	var matches []found
	var similar []string
	base := name[strings.LastIndexByte(name, '.')+1:]
	for _, f := range p.files {
		for _, d := range f.ast.Decls {
			n := declName(d)
			if n == "" {
				continue
			}
			if n == name {
				matches = append(matches, found{f, d})
			} else if n[strings.LastIndexByte(n, '.')+1:] == base {
				similar = append(similar, fmt.Sprintf("%s at %s", n, p.pos(d.Pos())))
			}
		}
	}
	switch len(matches) {
	case 0:
		if len(similar) > 0 {
			return nil, nil, errors.Errorf("declaration %s not found, there is %s", name, strings.Join(similar, ", "))
		}
		return nil, nil, errors.Errorf("declaration %s not found", name)
	case 1:
		return matches[0].file, matches[0].decl, nil
	}
	var places []string
	for _, m := range matches {
		places = append(places, p.pos(m.decl.Pos()))
	}
	return nil, nil, errors.Errorf("declaration %s found %d times: %s", name, len(matches), strings.Join(places, ", "))
}

func declName(d ast.Decl) string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil || len(d.Recv.List) == 0 {
			return d.Name.Name
		}
		t := d.Recv.List[0].Type
		if star, ok := t.(*ast.StarExpr); ok {
			t = star.X
		}
		switch x := t.(type) {
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		}
		if id, ok := t.(*ast.Ident); ok {
			return id.Name + "." + d.Name.Name
		}
	case *ast.GenDecl:
		if d.Tok == token.TYPE && len(d.Specs) == 1 {
			return d.Specs[0].(*ast.TypeSpec).Name.Name
		}
	}
	return ""
}

func (p *pkg) pos(pos token.Pos) string {
	position := p.fset.Position(pos)
	return fmt.Sprintf("%s/%s:%d", p.name, position.Filename, position.Line)
}

// source returns the code of n regardless of its layout: an empty file set knows no
// positions.
func source(n ast.Node) string {
	var buf bytes.Buffer
	if err := printer.Fprint(&buf, token.NewFileSet(), n); err != nil {
		return ""
	}
	return oneLine(buf.String())
}

func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}

// one returns the only node that matches a pattern, or an error.
func one[N ast.Node](e *editor, pattern string, nodes []N) (N, error) {
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	var zero N
	if len(nodes) == 0 {
		return zero, errors.Errorf("%q not found in %s at %s", pattern, e.seam.In, e.pos(e.decl.Pos()))
	}
	var places []string
	for _, n := range nodes {
		places = append(places, e.pos(n.Pos()))
	}
	return zero, errors.Errorf("%q found %d times: %s, in %s at %s", pattern, len(nodes), strings.Join(places, ", "), e.seam.In, e.pos(e.decl.Pos()))
}

// editor records the edits of one seam.
type editor struct {
	*pkg
	file *file
	decl ast.Decl
	seam *Seam
}

func (e *editor) offset(pos token.Pos) int {
	return e.fset.Position(pos).Offset
}

func (e *editor) replace(start, end int, text string) {
	e.file.edits = append(e.file.edits, edit{start: start, end: end, text: text, seam: e.seam})
}

func (e *editor) body(d ast.Decl) (*ast.FuncDecl, error) {
	fd, ok := d.(*ast.FuncDecl)
	if !ok || fd.Body == nil {
		return nil, errors.Errorf("%s at %s is not a function with a body", e.seam.In, e.pos(d.Pos()))
	}
	return fd, nil
}

// addField adds a last field, in a separate block so that the alignment of the other
// fields does not change.
func (e *editor) addField(d ast.Decl) (token.Pos, error) {
	var st *ast.StructType
	if gd, ok := d.(*ast.GenDecl); ok {
		st, _ = gd.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType)
	}
	if st == nil {
		return token.NoPos, errors.Errorf("%s at %s is not a struct", e.seam.In, e.pos(d.Pos()))
	}
	open, closing := e.offset(st.Fields.Opening), e.offset(st.Fields.Closing)
	switch {
	case bytes.Contains(e.file.src[open:closing], []byte("\n")):
		e.replace(closing, closing, "\n\t"+e.seam.AddField+"\n")
	case len(st.Fields.List) == 0:
		e.replace(open, closing, " {\n\t"+e.seam.AddField+"\n")
	default:
		return token.NoPos, errors.Errorf("%s at %s has its fields on one line", e.seam.In, e.pos(d.Pos()))
	}
	return st.Fields.Closing, nil
}

func (e *editor) rename(d ast.Decl, name string) (token.Pos, error) {
	var id *ast.Ident
	switch d := d.(type) {
	case *ast.FuncDecl:
		id = d.Name
	case *ast.GenDecl:
		id = d.Specs[0].(*ast.TypeSpec).Name
	}
	e.replace(e.offset(id.Pos()), e.offset(id.End()), name)
	return id.Pos(), nil
}

// replaceCall replaces a call, or only the called function if the pattern is not a
// call.
func (e *editor) replaceCall(d ast.Decl) (token.Pos, error) {
	fd, err := e.body(d)
	if err != nil {
		return token.NoPos, err
	}
	pattern, err := parser.ParseExpr(e.seam.ReplaceCall)
	if err != nil {
		return token.NoPos, errors.Wrapf(err, "replace-call %q", e.seam.ReplaceCall)
	}
	want := source(pattern)
	_, whole := pattern.(*ast.CallExpr)
	var found []ast.Expr
	ast.Inspect(fd.Body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		var expr ast.Expr = call
		if !whole {
			expr = call.Fun
		}
		if source(expr) == want {
			found = append(found, expr)
		}
		return true
	})
	expr, err := one(e, "call "+e.seam.ReplaceCall, found)
	if err != nil {
		return token.NoPos, err
	}
	e.replace(e.offset(expr.Pos()), e.offset(expr.End()), e.seam.With)
	return expr.Pos(), nil
}

// statement finds the only statement below n that matches pattern, or whose first line
// does.
func (e *editor) statement(n ast.Node, pattern string) (ast.Stmt, error) {
	want := oneLine(pattern)
	var found []ast.Stmt
	ast.Inspect(n, func(n ast.Node) bool {
		var list []ast.Stmt
		switch b := n.(type) {
		case *ast.BlockStmt:
			list = b.List
		case *ast.CaseClause:
			list = b.Body
		case *ast.CommClause:
			list = b.Body
		}
		for _, stmt := range list {
			src := string(e.file.src[e.offset(stmt.Pos()):e.offset(stmt.End())])
			first, _, _ := strings.Cut(src, "\n")
			if oneLine(first) == want || oneLine(src) == want {
				found = append(found, stmt)
			}
		}
		return true
	})
	return one(e, "statement "+pattern, found)
}

func (e *editor) insertAfter(d ast.Decl) (token.Pos, error) {
	fd, err := e.body(d)
	if err != nil {
		return token.NoPos, err
	}
	stmt, err := e.statement(fd.Body, e.seam.InsertAfter)
	if err != nil {
		return token.NoPos, err
	}
	at := e.offset(stmt.End())
	rest, _, _ := bytes.Cut(e.file.src[at:], []byte("\n"))
	if rest := bytes.TrimSpace(rest); len(rest) > 0 && !bytes.HasPrefix(rest, []byte("//")) {
		return token.NoPos, errors.Errorf("statement %q at %s has %q behind it on its line", e.seam.InsertAfter, e.pos(stmt.Pos()), rest)
	}
	at += len(rest) // after a comment at the end of the line
	with := []byte(e.seam.With)
	if formatted, err := format.Source(with); err == nil { // the indentation in YAML has spaces
		with = formatted
	}
	nl := "\n" + e.indent(stmt.Pos())
	e.replace(at, at, nl+strings.ReplaceAll(string(bytes.TrimSpace(with)), "\n", nl))
	return stmt.Pos(), nil
}

// indent returns the white space before the line of pos.
func (e *editor) indent(pos token.Pos) string {
	at := e.offset(pos)
	line := e.file.src[bytes.LastIndexByte(e.file.src[:at], '\n')+1 : at]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

func (e *editor) split(d ast.Decl) (token.Pos, error) {
	fd, err := e.body(d)
	if err != nil {
		return token.NoPos, err
	}
	if fd.Type.Results == nil || len(fd.Type.Results.List) == 0 {
		return token.NoPos, errors.Errorf("%s at %s has no result", e.seam.In, e.pos(d.Pos()))
	}
	stmt, err := e.statement(fd.Body, e.seam.Split.From)
	if err != nil {
		return token.NoPos, err
	}
	if !slices.Contains(fd.Body.List, stmt) {
		return token.NoPos, errors.Errorf("statement %q at %s is not in the outermost block of %s", e.seam.Split.From, e.pos(stmt.Pos()), e.seam.In)
	}
	if _, err := e.rename(fd, e.seam.Split.Rename); err != nil {
		return token.NoPos, err
	}
	res := fd.Type.Results.List[0].Type
	e.replace(e.offset(res.Pos()), e.offset(res.End()), e.seam.Split.Result)
	last := fd.Body.List[len(fd.Body.List)-1]
	e.replace(e.offset(stmt.Pos()), e.offset(last.End()), e.seam.Split.With)
	return stmt.Pos(), nil
}

// result applies the edits to the file and removes imports that are no longer used.
func (f *file) result() ([]byte, error) {
	slices.SortStableFunc(f.edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	var out bytes.Buffer
	at := 0
	var names []string
	for _, ed := range f.edits {
		if ed.start < at {
			return nil, errors.Errorf("%s: seams %s and %s change the same code", f.name, names[len(names)-1], ed.seam.Name)
		}
		out.Write(f.src[at:ed.start])
		out.WriteString(ed.text)
		at = ed.end
		names = append(names, ed.seam.Name)
	}
	out.Write(f.src[at:])
	names = slices.Compact(names)

	dt, err := f.dropUnusedImports(out.Bytes())
	if err != nil {
		return nil, errors.Wrapf(err, "%s does not parse after seams %s", f.name, strings.Join(names, ", "))
	}
	formatted, err := format.Source(dt)
	if err != nil {
		return nil, errors.Wrapf(err, "%s does not parse after seams %s", f.name, strings.Join(names, ", "))
	}
	if !bytes.Equal(formatted, dt) {
		return nil, errors.Errorf("%s is not formatted after seams %s", f.name, strings.Join(names, ", "))
	}
	return dt, nil
}

func (f *file) dropUnusedImports(dt []byte) ([]byte, error) {
	fset := token.NewFileSet()
	changed, err := parser.ParseFile(fset, f.name, dt, parser.ParseComments)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	for _, imp := range slices.Backward(changed.Imports) {
		path, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return nil, errors.WithStack(err)
		}
		if !astutil.UsesImport(f.ast, path) || astutil.UsesImport(changed, path) {
			continue
		}
		start := fset.Position(imp.Pos()).Offset
		start = bytes.LastIndexByte(dt[:start], '\n') + 1
		end := fset.Position(imp.End()).Offset
		if nl := bytes.IndexByte(dt[end:], '\n'); nl >= 0 {
			end += nl + 1
		}
		dt = slices.Concat(dt[:start], dt[end:])
		// the group may be empty now, and may be the first, the last or between others
		for _, gap := range [][2]string{{"import (\n\n", "import (\n"}, {"\"\n\n)", "\"\n)"}, {"\"\n\n\n", "\"\n\n"}, {"import (\n)\n\n", ""}} {
			dt = bytes.Replace(dt, []byte(gap[0]), []byte(gap[1]), 1)
		}
	}
	return dt, nil
}
