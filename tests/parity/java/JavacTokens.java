import com.sun.tools.javac.file.JavacFileManager;
import com.sun.tools.javac.parser.Scanner;
import com.sun.tools.javac.parser.ScannerFactory;
import com.sun.tools.javac.parser.Tokens;
import com.sun.tools.javac.util.Context;
import com.sun.tools.javac.util.Log;
import java.io.PrintWriter;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** The tokens of javac's own scanner: for each text of the file (parted by NUL) a line of start:end. */
public class JavacTokens {
    public static void main(String[] args) throws Exception {
        String all = Files.readString(Path.of(args[0]), StandardCharsets.UTF_8);
        StringBuilder out = new StringBuilder();
        for (String text : all.split("\0")) {
            Context context = new Context();
            context.put(Log.logKey, new Log(context, new PrintWriter(Writer.nullWriter())) {});
            JavacFileManager.preRegister(context);
            Scanner scanner = ScannerFactory.instance(context).newScanner(text, false);
            scanner.nextToken();
            while (scanner.token().kind != Tokens.TokenKind.EOF) {
                out.append(scanner.token().kind == Tokens.TokenKind.ERROR ? "error " : "");
                out.append(scanner.token().pos).append(':').append(scanner.token().endPos).append(' ');
                scanner.nextToken();
            }
            out.append('\n');
        }
        System.out.print(out);
    }
}
