package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// freeText are flags that take any text, so that none is refused.
var freeText = []string{"commit --author", "commit --message", "update --label-rm"}

// Each command is called by tests where it succeeds and by scripts where it is
// refused. So is each flag; one without a value has none that could be wrong.
func TestEveryCommandIsTested(t *testing.T) {
	root := (&app{}).command()
	u := &uses{root: root, good: map[string]bool{}, bad: map[string]bool{}}
	u.readScripts(t)
	u.readGo(t)
	for _, cmd := range allCommands(root)[1:] {
		path := pathOf(cmd)
		if !cmd.HasSubCommands() && !u.good[path] {
			t.Errorf("no test has `%s` succeed", path)
		}
		if !u.bad[path] {
			t.Errorf("no script has `%s` refused", path)
		}
		for _, alias := range cmd.Aliases {
			if alias = strings.TrimSpace(pathOf(cmd.Parent()) + " " + alias); !u.good[alias] {
				t.Errorf("no test has `%s` succeed", alias)
			}
		}
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			name := path + " --" + f.Name
			if !u.good[name] {
				t.Errorf("no test has `%s` succeed", name)
			}
			if takesValue(f) && !u.bad[name] && !slices.Contains(freeText, name) {
				t.Errorf("no script has `%s` refused, with an error that names it or its value", name)
			}
		})
	}
	for _, cmd := range root.Commands() { // docker's short forms
		if cmd.Hidden && !strings.HasPrefix(cmd.Name(), "__") && !u.good[cmd.Name()] {
			t.Errorf("no test has `%s` succeed", cmd.Name())
		}
	}
}

func takesValue(f *pflag.Flag) bool { return f.NoOptDefVal == "" }

// uses are the commands ("image ls") and flags ("image ls --json") that tests use
// in what succeeds, and in what is refused.
type uses struct {
	root      *cobra.Command
	good, bad map[string]bool
}

// readScripts reads what testscripts run, by exec, status, until and upon, and by a
// shell that those run. It is refused if it is our fault, usage, or no command.
func (u *uses) readScripts(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	inVM, _ := filepath.Glob("testdata/vm/*.txtar")
	if paths = append(paths, inVM...); err != nil || len(inVM) == 0 {
		t.Fatal("no scripts:", err)
	}
	for _, path := range paths {
		script, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(script.Comment), "\n")
		for i, line := range lines {
			words := scriptWords(line)
			if len(words) == 0 || words[0] == "!" {
				continue
			}
			var refusal *string
			if words[0] == "status" && slices.Contains([]string{"125", "126", "127"}, words[1]) {
				said := saidBelow(lines[i+1:])
				refusal = &said
			}
			for j, word := range words {
				if word == "matchlock" {
					u.note(words[j+1:], refusal)
					break
				}
				for _, command := range shellCommands(word) {
					u.note(command, refusal)
				}
			}
		}
	}
}

// scriptWords are the words of a line of a testscript.
func scriptWords(line string) (words []string) {
	for line = strings.TrimSpace(line); line != "" && line[0] != '#'; line = strings.TrimLeft(line, " \t") {
		word := ""
		for line != "" && line[0] != ' ' && line[0] != '\t' {
			if line[0] != '\'' {
				word, line = word+line[:1], line[1:]
				continue
			}
			quoted, rest, _ := strings.Cut(line[1:], "'")
			word, line = word+quoted, rest
			if strings.HasPrefix(line, "'") { // two are one
				word += "'"
			}
		}
		words = append(words, word)
	}
	return words
}

var (
	betweenCommands = regexp.MustCompile("[;|&()`\n]+")
	shellQuotes     = strings.NewReplacer(`"`, "", `'`, "")
)

// shellCommands are what a text for a shell has matchlock do. A quoted blank splits
// a word, which loses no flag.
func shellCommands(text string) (commands [][]string) {
	if !strings.Contains(text, "matchlock ") {
		return nil
	}
	for _, command := range betweenCommands.Split(text, -1) {
		words := strings.Fields(shellQuotes.Replace(command))
		for i, word := range words {
			if word == "matchlock" {
				commands = append(commands, words[i+1:])
				break
			}
		}
	}
	return commands
}

// saidBelow is what the lines that follow expect on standard error.
func saidBelow(lines []string) (patterns string) {
	for _, line := range lines {
		words := scriptWords(line)
		switch {
		case len(words) > 1 && words[0] == "stderr":
			patterns += strings.ReplaceAll(words[len(words)-1], `\`, "") + "\n"
		case len(words) > 0 && (words[0] == "stdout" || words[0] == "!"):
		default:
			return patterns
		}
	}
	return patterns
}

// readGo reads what tests in Go have the program do where that is to succeed.
func (u *uses) readGo(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, content, 0)
		if err != nil {
			t.Fatal(err)
		}
		judged := map[ast.Node]bool{} // calls that are judged where they are made, and may be to fail
		ast.Inspect(file, func(n ast.Node) bool {
			var args []ast.Expr
			switch n := n.(type) {
			case *ast.IfStmt:
				judged[n.Init] = true
			case *ast.AssignStmt:
				if call, ok := n.Rhs[0].(*ast.CallExpr); ok && !judged[n] && nameOf(call) == "run" {
					args = call.Args[min(2, len(call.Args)):]
				}
			case *ast.CompositeLit: // arguments to which others are appended
				args = n.Elts
			case *ast.CallExpr:
				if slices.Contains([]string{"mustRun", "call", "matchlock"}, nameOf(n)) {
					args = n.Args[1:]
				}
			}
			var words []string
			for _, arg := range args {
				word := "VALUE" // that the test computes
				if literal, ok := arg.(*ast.BasicLit); ok && literal.Kind == token.STRING {
					word, _ = strconv.Unquote(literal.Value)
				}
				words = append(words, word)
			}
			u.note(words, nil)
			return true
		})
	}
}

// nameOf is the name of a method that is called.
func nameOf(call *ast.CallExpr) string {
	if method, ok := call.Fun.(*ast.SelectorExpr); ok {
		return method.Sel.Name
	}
	return ""
}

// note notes the use of a command and its flags. What is refused has to say of a
// flag its name or its value.
func (u *uses) note(words []string, refusal *string) {
	seen := u.good
	if refusal != nil {
		seen = u.bad
	}
	cmd, typed := u.root, ""
	var flags []string
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case word == "--":
			i = len(words)
		case strings.HasPrefix(word, "-") && len(word) > 1:
			for _, f := range flagsIn(cmd, word) {
				if f.flag == nil || f.flag.Name == "help" {
					return // says what there is, or is refused, whatever else is there
				}
				if takesValue(f.flag) && f.value == nil && i+1 < len(words) {
					i++
					f.value = &words[i]
				}
				if refusal == nil || *refusal != "" && f.isIn(*refusal) {
					flags = append(flags, f.flag.Name)
				}
			}
		case cmd.HasSubCommands():
			sub, _, err := cmd.Find([]string{word})
			if err != nil || sub == cmd {
				i = len(words) // no command, which is refused
				break
			}
			cmd, typed = sub, strings.TrimSpace(typed+" "+word)
		case strings.Contains(cmd.Use, "ARG…"): // what follows is the command's own
			i = len(words)
		}
	}
	seen[pathOf(cmd)], seen[typed] = true, true
	for _, name := range flags {
		seen[pathOf(cmd)+" --"+name] = true
	}
}

// flagUse is a flag as it is given, with its value where that is in the same word.
type flagUse struct {
	flag  *pflag.Flag
	value *string
}

// flagsIn are the flags in a word: one, or several of one letter.
func flagsIn(cmd *cobra.Command, word string) (flags []flagUse) {
	if name, ok := strings.CutPrefix(word, "--"); ok {
		name, value, ok := strings.Cut(name, "=")
		use := flagUse{flag: cmd.Flag(name)}
		if ok {
			use.value = &value
		}
		return []flagUse{use}
	}
	for i := 1; i < len(word); i++ {
		f := cmd.Flags().ShorthandLookup(word[i : i+1])
		if f == nil || !takesValue(f) {
			flags = append(flags, flagUse{flag: f})
			continue
		}
		use := flagUse{flag: f}
		if value := strings.TrimPrefix(word[i+1:], "="); value != "" {
			use.value = &value
		}
		return append(flags, use)
	}
	return flags
}

// isIn tells whether an error speaks of the flag.
func (u flagUse) isIn(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "--"+u.flag.Name) || strings.Contains(text, strings.ReplaceAll(u.flag.Name, "-", " ")) ||
		u.value != nil && *u.value != "" && strings.Contains(text, strings.ToLower(*u.value))
}
